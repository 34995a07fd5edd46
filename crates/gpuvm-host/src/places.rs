//! Where gpuvm keeps its own files.

use std::path::{Path, PathBuf};

use gpuvm_core::profile::VmName;

/// gpuvm's own folders, all below one prefix when one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    run: PathBuf,
    lib: PathBuf,
    log: PathBuf,
    cache: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            run: "/run/gpuvm".into(),
            lib: "/var/lib/gpuvm".into(),
            log: "/var/log/gpuvm".into(),
            cache: "/var/cache/gpuvm".into(),
        }
    }
}

impl Places {
    /// Keeps everything below a folder: `PREFIX/run`, `PREFIX/lib`, `PREFIX/log`, `PREFIX/cache`.
    pub fn below(prefix: &Path) -> Self {
        let [run, lib, log, cache] = ["run", "lib", "log", "cache"].map(|name| prefix.join(name));
        Self { run, lib, log, cache }
    }

    /// Returns the folder of what lives until the host reboots.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Returns the file that is locked while the tables below [`Self::run`] are edited.
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// Returns the folder of reservations, one file per VM.
    pub fn reservations(&self) -> PathBuf {
        self.run.join("reservations")
    }

    /// Returns the table of claims on shared resources.
    pub fn claims(&self) -> PathBuf {
        self.run.join("claims.json")
    }

    /// Returns a VM's folder of state, journal and sockets.
    ///
    /// VMs have a folder of their own, so that a VM called `lock` is none of gpuvm's files.
    pub fn vm(&self, vm: &VmName) -> PathBuf {
        self.vms().join(vm.as_str())
    }

    /// Returns the folder that holds the folders of all VMs.
    pub fn vms(&self) -> PathBuf {
        self.run.join("vm")
    }

    /// Returns the folder of the sockets of a VM that a person runs by hand; no verb touches it.
    pub fn by_hand(&self, vm: &VmName) -> PathBuf {
        self.run.join("by-hand").join(vm.as_str())
    }

    /// Returns a VM's journal.
    pub fn journal(&self, vm: &VmName) -> PathBuf {
        self.vm(vm).join("journal")
    }

    /// Returns what a VM's devices said of themselves before anything was done.
    pub fn baselines(&self, vm: &VmName) -> PathBuf {
        self.vm(vm).join("baselines.json")
    }

    /// Returns what is known of the moment at which they said it, so that a later process can judge them.
    pub fn begun(&self, vm: &VmName) -> PathBuf {
        self.vm(vm).join("begun.json")
    }

    /// Returns what a VM's QEMU has written of itself before it was one: its `/proc/PID/stat`.
    pub fn qemu(&self, vm: &VmName) -> PathBuf {
        self.vm(vm).join("qemu.stat")
    }

    /// Returns the note that a VM's guest is to run from now on, with the number of its QEMU.
    pub fn continued(&self, vm: &VmName) -> PathBuf {
        self.vm(vm).join("continued")
    }

    /// Returns the verdicts on a VM's devices, once they are in.
    pub fn judged(&self, vm: &VmName) -> PathBuf {
        self.vm(vm).join("judged.json")
    }

    /// Returns the folder of what `gpuvm bind` has bound, one folder per set.
    pub fn bound(&self) -> PathBuf {
        self.run.join("bound")
    }

    /// Returns the folder of the repairs that no VM makes.
    pub fn repairs(&self) -> PathBuf {
        self.run.join("repairs")
    }

    /// Returns a VM's folder of what outlives a reboot, such as firmware variables.
    pub fn state(&self, vm: &VmName) -> PathBuf {
        self.states().join(vm.as_str())
    }

    /// Returns a VM's folder of throw-away overlays.
    pub fn overlays(&self, vm: &VmName) -> PathBuf {
        self.state(vm).join(gpuvm_core::plan::files::OVERLAYS)
    }

    /// Returns the folder of what was done with each device and how it came back, one file per device.
    pub fn ledger(&self) -> PathBuf {
        self.lib.join("ledger")
    }

    /// Returns the folder of what outlives a reboot, one folder per VM.
    pub fn states(&self) -> PathBuf {
        self.lib.join("vm")
    }

    /// Returns the folder that holds the folders of all VMs' logs.
    pub fn all_logs(&self) -> PathBuf {
        self.log.clone()
    }

    /// Returns the folder of what QEMUs have said of themselves, and what may be removed at any time.
    pub fn probes(&self) -> PathBuf {
        self.cache.join("qemu")
    }

    /// Returns the folder of what was found in initramfs images.
    pub fn initramfs(&self) -> PathBuf {
        self.cache.join("initramfs")
    }

    /// Returns a VM's folder of logs.
    pub fn logs(&self, vm: &VmName) -> PathBuf {
        self.log.join(vm.as_str())
    }

    /// Returns the folder of a VM's soaks, one folder each.
    pub fn soaks(&self, vm: &VmName) -> PathBuf {
        self.logs(vm).join("soak")
    }

    /// Returns the file that is locked while a soak of a VM runs.
    pub fn soak_lock(&self, vm: &VmName) -> PathBuf {
        self.run.join("soak").join(format!("{vm}.lock"))
    }
}
