# Creates a virtual machine with an interrupt controller and one virtual CPU that never runs, and keeps it (the reason is in rc).
use strict;
use warnings;

open(my $kvm, '+<', '/dev/kvm') or die "/dev/kvm: $!\n";
my $fd = ioctl($kvm, 0xAE01, 0) or die "KVM_CREATE_VM: $!\n";
open(my $vm, '+<&=', $fd + 0) or die "virtual machine: $!\n";
ioctl($vm, 0xAE60, 0) or die "KVM_CREATE_IRQCHIP: $!\n";
ioctl($vm, 0xAE41, 0) or die "KVM_CREATE_VCPU: $!\n";
$| = 1;
print "held\n";
sleep 3600 while 1;
