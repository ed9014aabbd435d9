#!/bin/sh
# SPDX-License-Identifier: MIT
#
# guest - run test programs on Debian's kernel in a machine of two NUMA nodes
#
#   tests/numa/guest.sh WORK PROGRAM...
#
# WORK keeps the kernel between runs; all else in it is made anew. The guest is
# QEMU without acceleration: two nodes of two cpus and 1.5 GiB each, a disk of ext4,
# no network. A program passes if it ends with 0. Output is TAP; where there is no
# QEMU or no kernel to be had, a reason and status 77.
set -eu

work=${1:?usage: guest.sh WORK PROGRAM...}
shift
seconds=${WEIR_GUEST_SECONDS:-1500}

pass_over() {
    echo "1..0 # SKIP $*"
    exit 77
}

for tool in qemu-system-x86_64 busybox cpio mkfs.ext4 dpkg-deb; do
    command -v $tool >/dev/null || pass_over "no $tool: tools/packages.sh build test long"
done

for program; do
    shift
    set -- "$@" "$(realpath "$program")"
done
mkdir -p "$work"
cd "$work"

# ---- Kernel -----------------------------------------------------------------

if [ ! -d kernel ]; then
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '/Depends: linux-image/ { print $2; exit }')
    [ -n "$package" ] || pass_over 'apt knows no linux-image-cloud-amd64'
    rm -f linux-image-*.deb
    apt-get download "$package" >/dev/null 2>&1 || pass_over "$package cannot be fetched"
    rm -rf kernel.new
    dpkg-deb -x linux-image-*.deb kernel.new
    rm -f linux-image-*.deb
    mv kernel.new kernel
fi
image=$(echo kernel/boot/vmlinuz-*)
modules=kernel/lib/modules/${image#kernel/boot/vmlinuz-}/kernel
drivers='virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk'

# ---- What boots: a shell that mounts the disk and goes there ------------------

rm -rf boot root
mkdir -p boot/bin boot/dev boot/disk boot/modules
cp "$(command -v busybox)" boot/bin/busybox
for driver in $drivers; do
    cp "$(find "$modules" -name $driver.ko)" boot/modules/
done
cat >boot/init <<END
#!/bin/busybox sh
b=/bin/busybox
\$b mount -t devtmpfs d /dev
for driver in $drivers; do \$b insmod /modules/\$driver.ko; done
while [ ! -b /dev/vda ]; do \$b usleep 10000; done
\$b mount -t ext4 /dev/vda /disk
\$b mount -t proc p /disk/proc
\$b mount -t sysfs s /disk/sys
\$b mount -t devtmpfs d /disk/dev
\$b mkdir -p /disk/dev/shm
\$b mount -t tmpfs t /disk/dev/shm
\$b ln -sf /proc/self/fd /disk/dev/fd
\$b chroot /disk /bin/busybox sh /run.sh
\$b poweroff -f
END
chmod +x boot/init
(cd boot && find . | cpio -o -H newc --quiet | gzip -1 >../boot.gz)

# ---- The disk: the programs and the libraries they want -----------------------

mkdir -p root/bin root/proc root/sys root/dev root/tmp root/var/tmp root/tests root/etc
cp "$(command -v busybox)" root/bin/busybox
ln -s busybox root/bin/sh
echo 'root:x:0:0::/tmp:/bin/sh' >root/etc/passwd
{
    echo 'export PATH=/bin HOME=/tmp TMPDIR=/var/tmp'
    echo 'cd /var/tmp; /bin/busybox uname -r'
} >root/run.sh
count=0
for program; do
    name=$(basename "$program")
    cp "$program" root/tests/
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "root$(dirname "$library")"
        cp -Lu "$library" "root$library"
    done
    count=$((count + 1))
    cat >>root/run.sh <<END
echo '# ---- $name'
/tests/$name 2>&1 && echo 'ok $count - $name' || echo 'not ok $count - $name'
END
done
echo 'echo guest-ended' >>root/run.sh
rm -f disk.img
truncate -s 4G disk.img
mkfs.ext4 -q -F -d root disk.img

# ---- Run ----------------------------------------------------------------------

echo "1..$count"
timeout "$seconds" qemu-system-x86_64 -kernel "$image" -initrd boot.gz -no-reboot \
    -monitor none -serial stdio -display none -vga none -nic none \
    -accel tcg,thread=multi -cpu max -smp 4 -m 3G \
    -object memory-backend-ram,id=m0,size=1536M -object memory-backend-ram,id=m1,size=1536M \
    -numa node,nodeid=0,cpus=0-1,memdev=m0 -numa node,nodeid=1,cpus=2-3,memdev=m1 \
    -numa dist,src=0,dst=1,val=21 \
    -drive file=disk.img,format=raw,if=virtio,cache=unsafe \
    -append 'console=ttyS0 quiet panic=-1 mitigations=off' </dev/null 2>&1 |
    tr -d '\r' | sed 's/^ok \(.*\) - \(.*[^a-z_].*\)$/#   ok \1 - \2/; s/^not ok \(.*\) - \(.*[^a-z_].*\)$/#   not ok \1 - \2/; s/^1\.\.[0-9]*$/# &/' |
    tee console.txt
grep -q '^guest-ended' console.txt || echo 'Bail out! the guest did not end by itself'
