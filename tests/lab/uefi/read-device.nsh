# Runs in the UEFI shell of a guest: finds the accelerator, reads its ids, its BAR and, through the BAR, its identification register; then powers off.
@echo -off
for %b in 01 02 03 04
  # Config space at ssssbbddffrr. A bus that isn't there leaves an error text in the variable.
  mm 00%b000000 -w 4 -PCI -n >v id
  if "%id%" == "0x11E81234" then
    # No driver has turned memory decoding on.
    mm 00%b000004 2 -w 2 -PCI -n
    mm 00%b000010 -w 4 -PCI -n >v bar0
    mm %bar0% -w 4 -MMIO -n >v register
    echo "gpuvm-uefi: id %id% bar0 %bar0% register %register%"
  endif
endfor
reset -s
