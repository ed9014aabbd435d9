/* SPDX-License-Identifier: MIT */
/*
 * consumer - the smallest user of an installed weir, valid in C11 and C++17
 *
 * tools/test.sh compiles it four times against the installed weir.pc. It calls
 * into the library, so that linking proves something, and asks whether header
 * and library are of one version.
 */
#include <weir.h>

#include <stdio.h>
#include <string.h>

int main(void)
{
    struct weir_governor *governor;
    int r = weir_governor_create(NULL, &governor);

    if (r < 0) {
        fprintf(stderr, "consumer: %s\n", strerror(-r));
        return 1;
    }
    weir_governor_destroy(governor);
    return strcmp(weir_version(), WEIR_VERSION) == 0 ? 0 : 1;
}
