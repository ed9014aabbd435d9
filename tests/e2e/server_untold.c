/* SPDX-License-Identifier: MIT */
/*
 * For LD_PRELOAD: a machine of which nobody tells how much memory it has, neither
 * the kernel nor a cgroup.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

long sysconf(int name)
{
    long (*real)(int);

    *(void **)&real = dlsym(RTLD_NEXT, "sysconf");
    return name == _SC_PHYS_PAGES ? -1 : real(name);
}

int open64(const char *path, int flags, ...)
{
    int (*real)(const char *, int, ...);
    va_list rest;

    *(void **)&real = dlsym(RTLD_NEXT, "open64");
    if (strcmp(path, "/proc/self/cgroup") == 0 || strcmp(path, "/proc/self/mountinfo") == 0) {
        errno = ENOENT;
        return -1;
    }
    va_start(rest, flags);
    const mode_t mode = __OPEN_NEEDS_MODE(flags) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return real(path, flags, mode);
}
