# The first process of a host, in network, mount, uts, ipc and pid namespaces of its own. It gives the host
# its own /run, /etc and /var/lib, says that it is ready, and then takes in orphans until it is killed.
#   host.sh NAME FOLDER
set -eu
name=$1 dir=$2
hostname "$name"
mount -t overlay -o "lowerdir=/etc,upperdir=$dir/etc,workdir=$dir/etc-work" overlay /etc
mount --bind "$dir/var-lib" /var/lib
mount --bind "$dir/run" /run
# /sys must be this host's for /sys/class/net, and the cgroups below it must stay.
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -R -l /run/cgroup
rmdir /run/cgroup
touch /run/ready
exec tini -s -- sleep infinity
