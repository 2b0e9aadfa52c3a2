#!/bin/busybox sh
# The first process of a machine. Every NIC, also one that appears later, gets the addresses that the kernel's
# command line has for its number: guest.ip0=10.90.0.51/24 guest.ip6_0=fd90::51/64.
# It pings each of guest.ping=10.90.0.52,fd90::52 until that answers.
busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /tmp /sbin /usr/bin /usr/sbin
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t devtmpfs dev /dev
$busybox --install -s /bin
export PATH=/bin
for module in /modules/*; do insmod "$module"; done
word() { for word in $(cat /proc/cmdline); do case $word in "$1"=*) echo "${word#*=}" ;; esac; done; }
ip link set lo up
while :; do
  for nic in /sys/class/net/eth*; do
    [ -e "$nic" ] || continue
    number=${nic##*/eth}
    [ -e "/tmp/done$number" ] && continue
    # An address is not probed for twins: the machine may be one that has just been moved.
    echo 0 >"/proc/sys/net/ipv6/conf/eth$number/accept_dad"
    ip link set "eth$number" up
    v4=$(word "guest.ip$number") v6=$(word "guest.ip6_$number")
    [ -z "$v4" ] || ip addr add "$v4" dev "eth$number"
    [ -z "$v6" ] || ip addr add "$v6" dev "eth$number"
    : >"/tmp/done$number"
    echo "guest: eth$number $(cat "$nic/address") mtu $(cat "$nic/mtu") queues $(ls -d "$nic"/queues/rx-* | wc -l) $v4 $v6"
  done
  for peer in $(word guest.ping | tr , ' '); do
    [ ! -e "/tmp/reached-$peer" ] && ping -c 1 -W 1 "$peer" >/dev/null 2>&1 || continue
    : >"/tmp/reached-$peer"
    echo "guest: reached $peer"
  done
  sleep 0.2
done
