//! The group model of VFIO: what can be learned and set up without opening a device, and opening one.
//!
//! Opening a device descriptor resets the device (and closing it resets it again), which is QEMU's to do once: gpuvm does it only where a reset is what
//! is asked for (in [`crate::reset`]).
//! Numbers and structures are those of linux/vfio.h; the numbers are `_IO(';', 100 + n)` even where a pointer goes with them.

use nix::errno::Errno;
use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use vfio_bindings::bindings::vfio as uapi;
use vmm_sys_util::fam::{FamStruct, FamStructWrapper};

/// The definitions of the calls; each is unsafe because the kernel reads or writes through its pointer.
pub(crate) mod ioctl {
    use nix::request_code_none;
    use vfio_bindings::bindings::vfio::{
        VFIO_BASE, VFIO_TYPE, vfio_device_info, vfio_group_status, vfio_iommu_type1_info, vfio_pci_hot_reset,
        vfio_pci_hot_reset_info,
    };

    nix::ioctl_none_bad!(get_api_version, request_code_none!(VFIO_TYPE, VFIO_BASE));
    nix::ioctl_write_int_bad!(check_extension, request_code_none!(VFIO_TYPE, VFIO_BASE + 1));
    nix::ioctl_write_int_bad!(set_iommu, request_code_none!(VFIO_TYPE, VFIO_BASE + 2));
    nix::ioctl_readwrite_bad!(
        group_get_status,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 3),
        vfio_group_status
    );
    nix::ioctl_write_ptr_bad!(group_set_container, request_code_none!(VFIO_TYPE, VFIO_BASE + 4), libc::c_int);
    nix::ioctl_none_bad!(group_unset_container, request_code_none!(VFIO_TYPE, VFIO_BASE + 5));
    nix::ioctl_write_ptr_bad!(
        group_get_device_fd,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 6),
        libc::c_char
    );
    nix::ioctl_readwrite_bad!(
        device_get_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 7),
        vfio_device_info
    );
    nix::ioctl_none_bad!(device_reset, request_code_none!(VFIO_TYPE, VFIO_BASE + 11));
    // Numbers from 12 on are used again for each kind of object: this is a device's, the next an IOMMU's.
    nix::ioctl_readwrite_bad!(
        device_get_pci_hot_reset_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 12),
        vfio_pci_hot_reset_info
    );
    nix::ioctl_write_ptr_bad!(
        device_pci_hot_reset,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 13),
        vfio_pci_hot_reset
    );
    nix::ioctl_readwrite_bad!(
        iommu_get_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 12),
        vfio_iommu_type1_info
    );
}

/// The size of `vfio_iommu_type1_info`; the capabilities lie behind it.
const INFO_BYTES: usize = size_of::<uapi::vfio_iommu_type1_info>();
/// The most that a kernel is believed to have to say about one IOMMU.
const MAX_INFO_BYTES: usize = 1 << 20;
const CAP_HEADER_BYTES: usize = size_of::<uapi::vfio_info_cap_header>();
const CAP_IOVA_RANGE: u16 = 1;
const CAP_DMA_AVAIL: u16 = 3;

/// A `vfio_iommu_type1_info` with room for the capabilities behind it.
#[repr(C)]
#[derive(Default)]
struct InfoAnswer {
    /// Bytes behind `info`. A count of our own: the kernel raises `argsz` to what it would like to have.
    room: u64,
    info: uapi::vfio_iommu_type1_info,
    capabilities: [u8; 0],
}

// SAFETY: `room` is set by `set_len` alone, to what the wrapper allocates behind the structure, and nothing else writes it.
unsafe impl FamStruct for InfoAnswer {
    type Entry = u8;

    fn len(&self) -> usize {
        // It came from a usize.
        usize::try_from(self.room).unwrap_or(0)
    }

    unsafe fn set_len(&mut self, len: usize) {
        self.room = len as u64;
    }

    fn max_len() -> usize {
        MAX_INFO_BYTES
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes were allocated behind the structure, whose size is a multiple of its alignment, and they were zeroed.
        unsafe { std::slice::from_raw_parts(self.capabilities.as_ptr(), self.len()) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        let len = self.len();
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.capabilities.as_mut_ptr(), len) }
    }
}

/// An open VFIO group (`/dev/vfio/N`); a group can be open once only, so keep it for as short as possible.
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
}

/// What `VFIO_GROUP_GET_STATUS` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupStatus {
    /// No member of the group is used by a driver that does DMA on its own.
    pub viable: bool,
    /// The group belongs to a container.
    pub container_set: bool,
}

impl GroupStatus {
    /// Tests the two bits that are known; newer ones are ignored.
    fn from_flags(flags: u32) -> Self {
        Self {
            viable: flags & uapi::VFIO_GROUP_FLAGS_VIABLE != 0,
            container_set: flags & uapi::VFIO_GROUP_FLAGS_CONTAINER_SET != 0,
        }
    }
}

impl Group {
    /// Opens the group's file.
    ///
    /// # Errors
    /// EBUSY when somebody has it open, ENOENT when no member is bound to a VFIO driver, EPERM for a no-IOMMU group without `CAP_SYS_RAWIO`.
    pub fn open(path: &Path) -> io::Result<Self> {
        open_rw(path).map(|fd| Self { fd })
    }

    /// Asks whether the group can be used.
    ///
    /// # Errors
    /// The errno of the ioctl; ENOTTY when the file is no VFIO group.
    pub fn status(&self) -> io::Result<GroupStatus> {
        let mut status =
            uapi::vfio_group_status { argsz: argsz(size_of::<uapi::vfio_group_status>())?, flags: 0 };
        // SAFETY: the pointer is to a whole vfio_group_status whose argsz says its size, and the kernel writes no more than that.
        unsafe { ioctl::group_get_status(self.fd.as_raw_fd(), &raw mut status) }?;
        Ok(GroupStatus::from_flags(status.flags))
    }

    /// Puts the group into a container.
    ///
    /// # Errors
    /// EINVAL when it is in one already, EPERM when the group is not viable.
    pub fn set_container(&self, container: &Container) -> io::Result<()> {
        let number: libc::c_int = container.fd.as_raw_fd();
        // SAFETY: the kernel reads one int through the pointer, which is to `number`.
        unsafe { ioctl::group_set_container(self.fd.as_raw_fd(), &raw const number) }?;
        Ok(())
    }

    /// Takes the group out of its container.
    ///
    /// # Errors
    /// EINVAL when it is in none, EBUSY while a device of it is open.
    pub fn unset_container(&self) -> io::Result<()> {
        // SAFETY: the call takes no argument.
        unsafe { ioctl::group_unset_container(self.fd.as_raw_fd()) }?;
        Ok(())
    }

    /// Opens a device of the group, which resets it; the group must be in a container with an IOMMU.
    ///
    /// # Errors
    /// ENODEV when the group has no such device, EINVAL without a container.
    pub fn open_device(&self, name: &CStr) -> io::Result<OwnedFd> {
        // SAFETY: `name` is a string that ends in NUL, and the kernel only reads it.
        let fd = unsafe { ioctl::group_get_device_fd(self.fd.as_raw_fd(), name.as_ptr()) }?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Closes the group and says how that went.
    ///
    /// # Errors
    /// The errno of close(2).
    pub fn close(self) -> io::Result<()> {
        Ok(nix::unistd::close(self.fd)?)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A kind of IOMMU driver that a container can be given; the numbers are the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IommuType {
    /// `VFIO_TYPE1_IOMMU`.
    Type1,
    /// `VFIO_TYPE1v2_IOMMU`, what QEMU takes first on x86.
    Type1v2,
    /// `VFIO_NOIOMMU_IOMMU`, which no guest can use.
    NoIommu,
}

impl IommuType {
    fn number(self) -> libc::c_int {
        match self {
            Self::Type1 => 1,
            Self::Type1v2 => 3,
            Self::NoIommu => 8,
        }
    }
}

/// An open VFIO container (`/dev/vfio/vfio`): one address space for the groups in it.
#[derive(Debug)]
pub struct Container {
    fd: OwnedFd,
}

impl Container {
    /// Opens the container's file, which makes a new and empty container.
    ///
    /// # Errors
    /// ENOENT when there is no VFIO on this host, ENODEV when its module can't be loaded, EACCES.
    pub fn open(path: &Path) -> io::Result<Self> {
        open_rw(path).map(|fd| Self { fd })
    }

    /// The version of the interface; 0 is the only one that there has been.
    ///
    /// # Errors
    /// ENOTTY when the file is no VFIO container.
    pub fn api_version(&self) -> io::Result<i32> {
        // SAFETY: the call takes no argument.
        Ok(unsafe { ioctl::get_api_version(self.fd.as_raw_fd()) }?)
    }

    /// Whether the host has this kind of IOMMU driver.
    ///
    /// # Errors
    /// ENOTTY when the file is no VFIO container.
    pub fn check_extension(&self, kind: IommuType) -> io::Result<bool> {
        // SAFETY: the argument is a plain number, and the kernel keeps nothing of it.
        let answer = unsafe { ioctl::check_extension(self.fd.as_raw_fd(), kind.number()) }?;
        Ok(answer > 0)
    }

    /// Attaches the container's groups to the IOMMU; interrupts that can't be remapped show here, as EPERM.
    ///
    /// # Errors
    /// EINVAL when the container has no group, EPERM without interrupt remapping (unless the host allows unsafe interrupts), ENODEV for a kind that
    /// the host lacks.
    pub fn set_iommu(&self, kind: IommuType) -> io::Result<()> {
        // SAFETY: the argument is a plain number, and the kernel keeps nothing of it but the kind.
        unsafe { ioctl::set_iommu(self.fd.as_raw_fd(), kind.number()) }?;
        Ok(())
    }

    /// Page sizes and usable address ranges of the IOMMU that was set.
    ///
    /// # Errors
    /// EINVAL when no IOMMU is set, `InvalidData` when the kernel's answer is not well-formed or longer than 1 MiB.
    pub fn iommu_info(&self) -> io::Result<IommuInfo> {
        // The kernel answers with the size that it wanted: first the bare structure, then one with room. The list can grow in between.
        let mut room = INFO_BYTES;
        for _ in 0..4 {
            let answer = self.iommu_info_bytes(room)?;
            let wanted = read_u32(&answer, 0)? as usize;
            if wanted <= room {
                return parse_iommu_info(&answer);
            }
            if wanted > MAX_INFO_BYTES {
                return Err(bad(format!("the kernel wants {wanted} bytes to describe one IOMMU")));
            }
            room = wanted;
        }
        Err(bad("the description of the IOMMU grew with every call".to_owned()))
    }

    /// One `VFIO_IOMMU_GET_INFO` with `room` bytes.
    fn iommu_info_bytes(&self, room: usize) -> io::Result<Vec<u8>> {
        let tail = room.saturating_sub(INFO_BYTES);
        let mut answer =
            FamStructWrapper::<InfoAnswer>::new(tail).map_err(|error| bad(format!("{error:?}")))?;
        let place = answer.as_mut_fam_struct_ptr();
        // SAFETY: `place` points to a live InfoAnswer of this function's own; this makes the address of a field and reads nothing.
        let info = unsafe { &raw mut (*place).info };
        // SAFETY: `info` is aligned and inside the same allocation.
        unsafe { (*info).argsz = argsz(room)? };
        // SAFETY: behind `info` lie `tail` bytes of the same allocation, argsz says so, and the kernel writes no more than argsz.
        unsafe { ioctl::iommu_get_info(self.fd.as_raw_fd(), info) }?;
        let info = &answer.as_fam_struct_ref().info;
        let mut bytes = [info.argsz.to_ne_bytes(), info.flags.to_ne_bytes()].concat();
        bytes.extend(info.iova_pgsizes.to_ne_bytes());
        bytes.extend([info.cap_offset.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(answer.as_slice());
        Ok(bytes)
    }

    /// Closes the container and says how that went.
    ///
    /// # Errors
    /// The errno of close(2).
    pub fn close(self) -> io::Result<()> {
        Ok(nix::unistd::close(self.fd)?)
    }
}

impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What `VFIO_IOMMU_GET_INFO` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuInfo {
    /// A bit for each page size in bytes: bit 12 is 4 KiB. Zero when the kernel did not say.
    pub page_sizes: u64,
    /// The addresses that a device may be given, ascending as the kernel lists them; empty before kernel 5.4, which did not say.
    pub iova_ranges: Vec<RangeInclusive<u64>>,
    /// How many more mappings the container takes; before kernel 5.10 unknown.
    pub dma_available: Option<u32>,
}

/// Reads a `vfio_iommu_type1_info` with the capabilities behind it; every offset is held against the bytes that there are.
fn parse_iommu_info(bytes: &[u8]) -> io::Result<IommuInfo> {
    let flags = read_u32(bytes, 4)?;
    let page_sizes = if flags & uapi::VFIO_IOMMU_INFO_PGSIZES == 0 { 0 } else { read_u64(bytes, 8)? };
    let mut info = IommuInfo { page_sizes, iova_ranges: Vec::new(), dma_available: None };
    if flags & uapi::VFIO_IOMMU_INFO_CAPS == 0 {
        return Ok(info);
    }
    let mut at = read_u32(bytes, 16)? as usize;
    // The kernel appends each capability behind the one before, so an offset that does not grow is a loop.
    let mut least = INFO_BYTES;
    while at != 0 {
        if at < least {
            return Err(bad(format!("capability at offset {at}, where {least} is the least possible")));
        }
        match read_u16(bytes, at)? {
            CAP_IOVA_RANGE => info.iova_ranges = parse_ranges(bytes, at)?,
            CAP_DMA_AVAIL => info.dma_available = Some(read_u32(bytes, at + CAP_HEADER_BYTES)?),
            _ => {}
        }
        least = at + CAP_HEADER_BYTES;
        at = read_u32(bytes, at + 4)? as usize;
    }
    Ok(info)
}

/// Reads a `vfio_iommu_type1_info_cap_iova_range` at offset `at`.
fn parse_ranges(bytes: &[u8], at: usize) -> io::Result<Vec<RangeInclusive<u64>>> {
    let count = read_u32(bytes, at + CAP_HEADER_BYTES)? as usize;
    let start = at + CAP_HEADER_BYTES + 8;
    let have = bytes.len().saturating_sub(start) / 16;
    if count > have {
        return Err(bad(format!("{count} address ranges announced, and room for {have}")));
    }
    (0..count)
        .map(|i| {
            let (first, last) = (read_u64(bytes, start + 16 * i)?, read_u64(bytes, start + 16 * i + 8)?);
            if first > last {
                return Err(bad(format!("address range from {first:#x} to {last:#x}")));
            }
            Ok(first..=last)
        })
        .collect()
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    let slice = at.checked_add(N).and_then(|end| bytes.get(at..end));
    slice
        .and_then(|part| part.try_into().ok())
        .ok_or_else(|| bad(format!("{N} bytes at offset {at} of an answer of {}", bytes.len())))
}

fn read_u16(bytes: &[u8], at: usize) -> io::Result<u16> {
    read(bytes, at).map(u16::from_ne_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> io::Result<u32> {
    read(bytes, at).map(u32::from_ne_bytes)
}

fn read_u64(bytes: &[u8], at: usize) -> io::Result<u64> {
    read(bytes, at).map(u64::from_ne_bytes)
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("VFIO_IOMMU_GET_INFO: {what}"))
}

fn argsz(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| Errno::EOVERFLOW.into())
}

/// Opens for reading and writing; std sets `O_CLOEXEC`.
fn open_rw(path: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::request_code_none;

    #[test]
    fn an_answer_has_its_room_right_behind_the_kernels_structure() {
        use std::mem::offset_of;
        assert_eq!(offset_of!(InfoAnswer, capabilities) - offset_of!(InfoAnswer, info), INFO_BYTES);
        let answer = FamStructWrapper::<InfoAnswer>::new(100).unwrap();
        assert_eq!(answer.as_slice(), [0; 100]);
    }

    use rstest::rstest;

    /// An answer of the kernel: header fields, then whatever the test puts behind.
    fn answer(flags: u32, cap_offset: u32, tail: &[u8]) -> Vec<u8> {
        let argsz = u32::try_from(INFO_BYTES + tail.len()).unwrap();
        let mut bytes = [argsz.to_ne_bytes(), flags.to_ne_bytes()].concat();
        bytes.extend(0x4020_1000_u64.to_ne_bytes());
        bytes.extend([cap_offset.to_ne_bytes(), [0; 4]].concat());
        bytes.extend(tail);
        bytes
    }

    fn cap(id: u16, next: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = [id.to_ne_bytes(), 1_u16.to_ne_bytes()].concat();
        bytes.extend(next.to_ne_bytes());
        bytes.extend(body);
        bytes
    }

    fn ranges(count: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = [count.to_ne_bytes(), [0; 4]].concat();
        ranges
            .iter()
            .for_each(|(first, last)| bytes.extend([first.to_ne_bytes(), last.to_ne_bytes()].concat()));
        bytes
    }

    #[test]
    fn a_kernel_that_says_all_is_understood() {
        // What an Intel host says: the hole is that of the interrupt messages.
        let list = [(0, 0xfedf_ffff), (0xfef0_0000, 0x01ff_ffff_ffff)];
        let iova = cap(1, 24 + 48 + 12, &ranges(2, &list));
        let unknown = cap(77, 24 + 48 + 12 + 12, &[1, 2, 3, 4]);
        let avail = cap(3, 24 + 48, &65_535_u32.to_ne_bytes());
        // In the order that the kernel gives: migration, availability, ranges; here availability comes last to see that order does not matter.
        assert_eq!(iova.len(), 48);
        let tail = [iova, vec![0; 12], unknown, cap(3, 0, &65_535_u32.to_ne_bytes())].concat();
        assert_eq!(avail.len(), 12);
        let info = parse_iommu_info(&answer(3, 24, &tail)).unwrap();
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.iova_ranges, [0..=0xfedf_ffff, 0xfef0_0000..=0x01ff_ffff_ffff]);
        assert_eq!(info.dma_available, Some(65_535));
    }

    #[test]
    fn an_old_kernel_says_page_sizes_only() {
        let info = parse_iommu_info(&answer(1, 0, &[])).unwrap();
        assert_eq!(info, IommuInfo { page_sizes: 0x4020_1000, iova_ranges: vec![], dma_available: None });
        assert_eq!(parse_iommu_info(&answer(0, 999, &[])).unwrap().page_sizes, 0);
        assert_eq!(parse_iommu_info(&answer(3, 0, &[])).unwrap().iova_ranges, []);
    }

    #[rstest]
    #[case::before_the_tail(8, vec![])]
    #[case::inside_the_header(20, cap(1, 0, &[]))]
    #[case::out_of_range(4096, cap(1, 0, &[]))]
    #[case::huge(u32::MAX, cap(1, 0, &[]))]
    #[case::cut_header(24, vec![1, 0, 1, 0])]
    #[case::loop_to_itself(24, cap(9, 24, &[0; 8]))]
    #[case::loop_back(24, [cap(9, 32, &[]), cap(9, 24, &[])].concat())]
    #[case::next_out_of_range(24, cap(9, 5000, &[]))]
    #[case::next_overlaps(24, cap(9, 28, &[0; 32]))]
    #[case::no_count(24, cap(1, 0, &[]))]
    #[case::count_too_large(24, cap(1, 0, &ranges(3, &[(0, 1), (2, 3)])))]
    #[case::count_absurd(24, cap(1, 0, &ranges(u32::MAX, &[(0, 1)])))]
    #[case::backwards(24, cap(1, 0, &ranges(1, &[(5, 4)])))]
    #[case::cut_availability(24, cap(3, 0, &[1, 2]))]
    fn a_malformed_chain_is_an_error(#[case] cap_offset: u32, #[case] tail: Vec<u8>) {
        let error = parse_iommu_info(&answer(3, cap_offset, &tail)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().starts_with("VFIO_IOMMU_GET_INFO: "), "{error}");
    }

    #[test]
    fn no_prefix_of_an_answer_panics() {
        let tail = [cap(3, 36, &7_u32.to_ne_bytes()), cap(1, 0, &ranges(2, &[(0, 1), (2, 3)]))].concat();
        let whole = answer(3, 24, &tail);
        parse_iommu_info(&whole).unwrap();
        for len in 0..whole.len() {
            parse_iommu_info(&whole[..len]).unwrap_err();
        }
    }

    #[test]
    fn status_tests_bits_and_ignores_others() {
        let both = GroupStatus { viable: true, container_set: true };
        assert_eq!(GroupStatus::from_flags(0xffff_ffff), both);
        assert_eq!(GroupStatus::from_flags(1), GroupStatus { viable: true, container_set: false });
        assert_eq!(GroupStatus::from_flags(4), GroupStatus { viable: false, container_set: false });
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        // linux/vfio.h through a C compiler.
        assert_eq!(request_code_none!(uapi::VFIO_TYPE, uapi::VFIO_BASE), 0x3b64);
        assert_eq!(request_code_none!(uapi::VFIO_TYPE, uapi::VFIO_BASE + 3), 0x3b67);
        assert_eq!(request_code_none!(uapi::VFIO_TYPE, uapi::VFIO_BASE + 12), 0x3b70);
        assert_eq!(IommuType::Type1.number().unsigned_abs(), uapi::VFIO_TYPE1_IOMMU);
        assert_eq!(IommuType::Type1v2.number().unsigned_abs(), uapi::VFIO_TYPE1v2_IOMMU);
        assert_eq!(IommuType::NoIommu.number().unsigned_abs(), uapi::VFIO_NOIOMMU_IOMMU);
        assert_eq!(u32::from(CAP_IOVA_RANGE), uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
        assert_eq!(u32::from(CAP_DMA_AVAIL), uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
        assert_eq!((INFO_BYTES, CAP_HEADER_BYTES), (24, 8));
    }

    #[test]
    fn a_file_that_is_not_vfio_gives_enotty() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (group, container) = (Group::open(file.path()).unwrap(), Container::open(file.path()).unwrap());
        let errno = |error: io::Error| error.raw_os_error().unwrap();
        assert_eq!(errno(group.status().unwrap_err()), libc::ENOTTY);
        assert_eq!(errno(group.set_container(&container).unwrap_err()), libc::ENOTTY);
        assert_eq!(errno(group.unset_container().unwrap_err()), libc::ENOTTY);
        assert_eq!(errno(container.api_version().unwrap_err()), libc::ENOTTY);
        assert_eq!(errno(container.check_extension(IommuType::Type1v2).unwrap_err()), libc::ENOTTY);
        assert_eq!(errno(container.set_iommu(IommuType::Type1v2).unwrap_err()), libc::ENOTTY);
        assert_eq!(errno(container.iommu_info().unwrap_err()), libc::ENOTTY);
        group.close().unwrap();
        container.close().unwrap();
        assert_eq!(errno(Group::open(Path::new("/nonexistent/1")).unwrap_err()), libc::ENOENT);
    }
}
