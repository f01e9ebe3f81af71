//! What this machine has, and what its control group lets this process have of it.

use std::path::{Path, PathBuf};

use serde::Serialize;

const GIB: u64 = 1 << 30;

/// How large a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Profile {
    /// Below 4 GiB of memory.
    Micro,
    /// 4 to 8 GiB.
    Lite,
    /// Above 8 GiB.
    Full,
}

impl Profile {
    /// The profile of a machine with that much memory.
    #[must_use]
    pub fn of(memory_bytes: u64) -> Self {
        if memory_bytes < 4 * GIB {
            Self::Micro
        } else if memory_bytes <= 8 * GIB {
            Self::Lite
        } else {
            Self::Full
        }
    }
}

/// The hardware this process may use.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Hardware {
    /// Logical processors this process may run on.
    pub cores: usize,
    /// Processors' worth of time the control group grants, if it limits it.
    pub cpu_quota: Option<f64>,
    /// Processor architecture.
    pub arch: &'static str,
    /// Instruction set extensions that matter to inference, as detected at run time.
    pub isa: Vec<&'static str>,
    /// Memory of the machine; `None` where the system does not say.
    pub ram_bytes: Option<u64>,
    /// Memory the control group grants, if it limits it.
    pub limit_bytes: Option<u64>,
    /// Memory that can be taken now without pushing anything out, control group included.
    pub available_bytes: Option<u64>,
    /// How large the machine is, by the smaller of memory and limit; micro where nothing is known.
    pub profile: Profile,
}

impl Hardware {
    /// Looks at this machine. Memory is read from `/proc` and `/sys/fs/cgroup` (versions 1 and 2); elsewhere it
    /// stays unknown, and everything built on it says so.
    #[must_use]
    pub fn detect() -> Self {
        Self::detect_under(Path::new("/"))
    }

    /// The same with another root folder, so that tests can lay out a machine.
    #[must_use]
    pub fn detect_under(root: &Path) -> Self {
        let info = read(&root.join("proc/meminfo"));
        let ram = info.as_deref().and_then(|info| meminfo(info, "MemTotal"));
        let free = info.as_deref().and_then(|info| meminfo(info, "MemAvailable"));
        let group = Group::find(root);
        // A limit above the machine's memory limits nothing.
        let limit = group.limit.filter(|limit| ram.is_none_or(|ram| *limit < ram));
        let left = limit.map(|limit| limit.saturating_sub(group.used));
        let available = match (free, left) {
            (Some(free), Some(left)) => Some(free.min(left)),
            (one, other) => one.or(other),
        };
        let total = limit.or(ram);
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_quota: group.cpus,
            arch: std::env::consts::ARCH,
            isa: isa(),
            ram_bytes: ram,
            limit_bytes: limit,
            available_bytes: available,
            profile: total.map_or(Profile::Micro, Profile::of),
        }
    }

    /// Memory this process may have at most: the machine's, or the control group's limit.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        self.limit_bytes.or(self.ram_bytes)
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn meminfo(info: &str, key: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the control groups of this process grant, the tightest of all levels.
#[derive(Debug, Default)]
struct Group {
    limit: Option<u64>,
    used: u64,
    cpus: Option<f64>,
}

impl Group {
    fn find(root: &Path) -> Self {
        let mut group = Self::default();
        let membership = read(&root.join("proc/self/cgroup")).unwrap_or_default();
        let mount = root.join("sys/fs/cgroup");
        for line in membership.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            if controllers.is_empty() {
                levels(&mount, path).iter().for_each(|level| group.version_2(level));
            } else if controllers.split(',').any(|name| name == "memory") {
                levels(&mount.join("memory"), path).iter().for_each(|level| group.memory_1(level));
            } else if controllers.split(',').any(|name| name == "cpu") {
                for name in ["cpu", "cpu,cpuacct"] {
                    levels(&mount.join(name), path).iter().for_each(|level| group.cpu_1(level));
                }
            }
        }
        group
    }

    fn tighten(&mut self, limit: Option<u64>, used: Option<u64>, reclaimable: u64) {
        if let Some(limit) = limit
            && self.limit.is_none_or(|known| limit < known)
        {
            // Page cache counts as used but makes room when asked.
            self.used = used.unwrap_or(0).saturating_sub(reclaimable);
            self.limit = Some(limit);
        }
    }

    fn version_2(&mut self, level: &Path) {
        let number = |name: &str| read(&level.join(name))?.trim().parse().ok();
        self.tighten(number("memory.max"), number("memory.current"), stat(level, "inactive_file"));
        let quota = read(&level.join("cpu.max")).unwrap_or_default();
        let mut parts = quota.split_whitespace().map(str::parse::<f64>);
        if let (Some(Ok(quota)), Some(Ok(period))) = (parts.next(), parts.next()) {
            self.quota(quota, period);
        }
    }

    fn memory_1(&mut self, level: &Path) {
        let number = |name: &str| read(&level.join(name))?.trim().parse().ok();
        let limit = number("memory.limit_in_bytes");
        self.tighten(limit, number("memory.usage_in_bytes"), stat(level, "total_inactive_file"));
    }

    fn cpu_1(&mut self, level: &Path) {
        let number = |name: &str| read(&level.join(name))?.trim().parse::<f64>().ok();
        if let (Some(quota), Some(period)) = (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")) {
            self.quota(quota, period);
        }
    }

    fn quota(&mut self, quota: f64, period: f64) {
        if quota > 0.0 && period > 0.0 && self.cpus.is_none_or(|known| quota / period < known) {
            self.cpus = Some(quota / period);
        }
    }
}

fn stat(level: &Path, key: &str) -> u64 {
    let text = read(&level.join("memory.stat")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}

/// The folder of a control group and those above it. In a container the group's own path often is not mounted, and
/// what is mounted at the top is the group.
fn levels(mount: &Path, path: &str) -> Vec<PathBuf> {
    let mut levels = vec![mount.to_owned()];
    let mut level = mount.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != "..") {
        level.push(part);
        levels.push(level.clone());
    }
    levels
}

#[cfg(target_arch = "x86_64")]
fn isa() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! probe {
        ($($name:tt),*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
    }
    probe!(
        "sse4.2",
        "avx",
        "avx2",
        "fma",
        "f16c",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512vnni",
        "avx512bf16"
    );
    found
}

#[cfg(target_arch = "aarch64")]
fn isa() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! probe {
        ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
    }
    probe!("neon", "fp16", "dotprod", "i8mm", "bf16", "sve");
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn isa() -> Vec<&'static str> {
    Vec::new()
}

impl std::fmt::Display for Hardware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let gib = |bytes: Option<u64>| match bytes {
            Some(bytes) => format!("{:.1} GiB", bytes as f64 / GIB as f64),
            None => "unknown".to_owned(),
        };
        writeln!(f, "profile    {}", format!("{:?}", self.profile).to_lowercase())?;
        write!(f, "cores      {}", self.cores)?;
        if let Some(quota) = self.cpu_quota {
            write!(f, " (control group grants {quota:.1})")?;
        }
        writeln!(f, "\nisa        {} {}", self.arch, self.isa.join(" "))?;
        write!(f, "memory     {}", gib(self.ram_bytes))?;
        if self.limit_bytes.is_some() {
            write!(f, " (control group grants {})", gib(self.limit_bytes))?;
        }
        write!(f, "\navailable  {}", gib(self.available_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Hardware) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let hardware = Hardware::detect_under(root.path());
        (root, hardware)
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\n");

    #[test]
    fn profiles_split_at_4_and_8_gib() {
        assert_eq!(Profile::of(4 * GIB - 1), Profile::Micro);
        assert_eq!(Profile::of(4 * GIB), Profile::Lite);
        assert_eq!(Profile::of(8 * GIB), Profile::Lite);
        assert_eq!(Profile::of(8 * GIB + 1), Profile::Full);
    }

    #[test]
    fn a_bare_machine_has_its_own_memory() {
        let (_root, it) = machine(&[MEMINFO, ("proc/self/cgroup", "0::/\n")]);
        assert_eq!((it.ram_bytes, it.limit_bytes), (Some(16 * GIB), None));
        assert_eq!((it.available_bytes, it.profile), (Some(8 * GIB), Profile::Full));
    }

    #[test]
    fn version_2_takes_the_tightest_level_and_gives_page_cache_back() {
        let (_root, it) = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/memory.max", "6442450944\n"),
            ("sys/fs/cgroup/a/memory.current", "3221225472\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 1073741824\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n"),
        ]);
        assert_eq!((it.limit_bytes, it.available_bytes), (Some(6 * GIB), Some(4 * GIB)));
        assert_eq!((it.profile, it.cpu_quota), (Profile::Lite, Some(1.5)));
    }

    #[test]
    fn version_1_reads_its_own_names_and_no_limit_is_none() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2147483648\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n"),
        ];
        let (_root, it) = machine(&files);
        assert_eq!((it.limit_bytes, it.available_bytes), (Some(2 * GIB), Some(GIB)));
        assert_eq!((it.profile, it.cpu_quota), (Profile::Micro, Some(0.5)));
        let (_root, it) = machine(&files[..3]);
        assert_eq!((it.limit_bytes, it.profile), (None, Profile::Full));
    }

    #[test]
    fn nothing_known_is_said_to_be_unknown() {
        let (_root, it) = machine(&[]);
        assert_eq!((it.memory_bytes(), it.available_bytes, it.profile), (None, None, Profile::Micro));
        assert!(it.to_string().contains("unknown"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_has_cores_and_memory() {
        let it = Hardware::detect();
        assert!(it.cores >= 1 && it.ram_bytes.unwrap() > 1 << 28, "{it}");
        assert!(it.available_bytes.unwrap() <= it.ram_bytes.unwrap());
    }
}
