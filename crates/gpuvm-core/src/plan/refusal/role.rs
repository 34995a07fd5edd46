//! What a refusal names: a file's part in a VM, and how memory was counted.

/// What of a node's memory was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryMeasure {
    /// All of it.
    Total,
    /// What nothing uses, or only caches.
    Available,
}

impl std::fmt::Display for MemoryMeasure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Total => "in all",
            Self::Available => "that are free or only cache",
        })
    }
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileRole {
    /// `kernel.path`.
    Kernel,
    /// `kernel.initrd`.
    Initrd,
    /// `disk.path`, which the guest may write to.
    Disk,
    /// `disk.path`, which the guest only reads.
    ReadOnlyDisk,
    /// `device.rom-file`.
    Rom,
    /// A firmware file that a descriptor names.
    Firmware,
}

impl std::fmt::Display for FileRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel.path",
            Self::Initrd => "kernel.initrd",
            Self::Disk | Self::ReadOnlyDisk => "disk.path",
            Self::Rom => "device.rom-file",
            Self::Firmware => "firmware file",
        })
    }
}
