# Runs in the UEFI shell of a guest: starts the kernel on the same disk by its EFI stub, as a boot loader would.
@echo -off
FS0:
linux.efi initrd=\initrd console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1 lpj=10000000
