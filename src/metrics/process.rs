//! What the kernel says of this process, from `/proc`. What it does not say is zero.

use std::fs;

/// Ticks in a second of the times in `/proc`. The kernel's interface to user space has 100 on every
/// architecture that this daemon runs on, whatever the kernel's own timer does.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the kernel says of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Bytes of memory that are resident.
    pub resident_bytes: u64,
    /// Processor time used, kernel's included.
    pub cpu_seconds: f64,
    /// File descriptors that are open.
    pub open_fds: u64,
    /// The most of them.
    pub max_fds: u64,
    /// When it started, in seconds since the epoch.
    pub start_time_seconds: f64,
}

impl Process {
    /// Asks the kernel.
    pub fn observe() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let times = times(&text("/proc/self/stat")).unwrap_or_default();
        let boot_seconds = boot_seconds(&text("/proc/stat")).unwrap_or_default();
        Self {
            resident_bytes: resident_bytes(&text("/proc/self/status")).unwrap_or_default(),
            cpu_seconds: times.cpu_seconds,
            // The directory's own descriptor is one of those it lists.
            open_fds: fs::read_dir("/proc/self/fd")
                .map_or(0, |fds| (fds.count() as u64).saturating_sub(1)),
            max_fds: max_fds(&text("/proc/self/limits")).unwrap_or_default(),
            start_time_seconds: boot_seconds + times.start_seconds_after_boot,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Times {
    cpu_seconds: f64,
    start_seconds_after_boot: f64,
}

/// From `/proc/self/stat`; see proc_pid_stat(5), whose numbers of fields begin at 1.
fn times(stat: &str) -> Option<Times> {
    // The second field, a name in parentheses, may itself have spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (user, system, start) = (ticks(14)?, ticks(15)?, ticks(22)?);
    Some(Times {
        cpu_seconds: (user + system) as f64 / TICKS_PER_SECOND,
        start_seconds_after_boot: start as f64 / TICKS_PER_SECOND,
    })
}

/// From `/proc/stat`.
fn boot_seconds(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse::<u64>().ok().map(|seconds| seconds as f64)
}

/// From `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// From `/proc/self/limits`: the soft one.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_are_read() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 4 0 900 1 2 3";
        let expected = Times { cpu_seconds: 2.0, start_seconds_after_boot: 9.0 };
        assert_eq!(times(stat), Some(expected));
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\nx 1\n"), Some(1_700_000_000.0));
        assert_eq!(resident_bytes("VmHWM:\t9 kB\nVmRSS:\t    12 kB\n"), Some(12_288));
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files   1024  4096  files\n";
        assert_eq!(max_fds(limits), Some(1024));
    }

    #[test]
    fn texts_that_are_cut_off_are_no_panic() {
        assert_eq!(times("12 (a) S 1"), None);
        assert_eq!(times(""), None);
        assert_eq!(boot_seconds("btime"), None);
        assert_eq!(resident_bytes("VmRSS: 1 MB"), None);
        assert_eq!(max_fds("Max open files"), None);
    }

    #[test]
    fn this_process_is_observed() {
        let process = Process::observe();
        assert!(process.resident_bytes > 100_000);
        assert!(process.open_fds >= 3 && process.max_fds >= process.open_fds);
        assert!(process.start_time_seconds > 1.5e9);
    }
}
