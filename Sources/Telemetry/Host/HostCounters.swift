import Platform

/// What the kernel counts of a host: CPU, pressure, frequency, memory errors, throttling, temperature (Documentation/filesystems/proc.rst,
/// accounting/psi.rst, admin-guide/pm/cpufreq.rst, driver-api/edac.rst; /sys/devices/system/cpu/cpuN/thermal_throttle of x86).
struct HostCounters {
    private let files: HostFiles
    private var rates = RateTable()
    private let sources: Sources
    /// Of hundreds of CPUs so many, spread evenly: reading one's frequency may wake it up.
    private static let mostCPUs = 16

    /// Where things stand: it does not change while the host runs, but for CPUs that are taken off line, whose files then are not there.
    private struct Sources {
        var frequencies: [String]
        var throttles: [String]
        var memoryControllers: [String]
        var zones: [String]
    }

    init(_ files: HostFiles = HostFiles()) {
        self.files = files
        let cpuFolder = "/sys/devices/system/cpu"
        let cpus = files.numbered("cpu", in: cpuFolder)
        let spread = stride(from: 0, to: cpus.count, by: max(1, (cpus.count + Self.mostCPUs - 1) / Self.mostCPUs)).map { "\(cpuFolder)/\(cpus[$0])" }
        let kinds = ["core", "package"]
        sources = Sources(
            frequencies: spread.map { "\($0)/cpufreq/scaling_cur_freq" }.filter(files.exists),
            throttles: spread.flatMap { cpu in kinds.map { "\(cpu)/thermal_throttle/\($0)_throttle_count" } }.filter(files.exists),
            memoryControllers: files.numbered("mc", in: "/sys/devices/system/edac/mc").map { "/sys/devices/system/edac/mc/\($0)" },
            zones: files.numbered("thermal_zone", in: "/sys/class/thermal").map { "/sys/class/thermal/\($0)/temp" })
    }

    mutating func sample(at now: MonotonicTime = .now) -> [String: Double] {
        var values: [String: Double] = [:]
        addProcessor(&values, now)
        addPressure(&values, now)
        addMemory(&values, now)
        values.note("host_load_1m", files.text("/proc/loadavg")?.split(separator: " ").first.flatMap { Double($0) })
        values.note("host_cpu_frequency_mhz", frequency)
        let throttles = sources.throttles.compactMap(files.count)
        if !throttles.isEmpty { values.note("host_thermal_throttles_per_second", rates.perSecond("throttle", throttles.reduce(0, &+), at: now)) }
        // Thousandths of a degree; sensors that are not there read as a hundred below zero or worse.
        values.note("host_temperature_celsius", sources.zones.compactMap(files.number).map { $0 / 1000 }.filter { $0 > -50 && $0 < 200 }.max())
        return values
    }

    /// All CPUs together: the first line of /proc/stat, in ticks.
    private mutating func addProcessor(_ values: inout [String: Double], _ now: MonotonicTime) {
        guard let line = files.text("/proc/stat")?.split(separator: "\n").first, line.hasPrefix("cpu ") else { return }
        // user nice system idle iowait irq softirq steal guest guest_nice; guests' time is part of user's.
        let ticks = line.split(separator: " ").dropFirst().compactMap { UInt64($0) }
        guard ticks.count >= 8 else { return }
        let grown = ticks.prefix(8).enumerated().map { rates.growth("cpu\($0.offset)", $0.element, at: now)?.count }
        let known = grown.compactMap { $0 }
        // iowait may fall by a tick or two; without it there is no whole to take a part of.
        guard known.count == 8 else { return }
        let total = known.reduce(0, +)
        guard total > 0 else { return }
        values.note("host_cpu_percent", (total - known[3] - known[4]) / total * 100)
        values.note("host_cpu_iowait_percent", known[4] / total * 100)
        values.note("host_cpu_steal_percent", known[7] / total * 100)
    }

    /// The part of the time in which somebody (`some`) or everybody (`full`) waited.
    private mutating func addPressure(_ values: inout [String: Double], _ now: MonotonicTime) {
        for (resource, kinds) in [("cpu", ["some"]), ("memory", ["some", "full"]), ("io", ["some", "full"])] {
            guard let text = files.text("/proc/pressure/\(resource)") else { continue }
            for line in text.split(separator: "\n") {
                guard let kind = kinds.first(where: { line.hasPrefix($0 + " ") }), let total = line.split(separator: " ").last, total.hasPrefix("total=") else { continue }
                let microseconds = rates.perSecond("\(resource) \(kind)", UInt64(total.dropFirst(6)), at: now)
                values.note("host_pressure_\(resource)_\(kind)_percent", microseconds.map { min(100, $0 / 1e4) })
            }
        }
    }

    private mutating func addMemory(_ values: inout [String: Double], _ now: MonotonicTime) {
        let available = files.text("/proc/meminfo")?.split(separator: "\n").first { $0.hasPrefix("MemAvailable:") }
        values.note("host_memory_available_bytes", available?.split(separator: " ").dropFirst().first.flatMap { Double($0) }.map { $0 * 1024 })
        for (kind, file) in [("corrected", "ce_count"), ("uncorrected", "ue_count")] {
            let counts = sources.memoryControllers.compactMap { files.count("\($0)/\(file)") }
            if !counts.isEmpty { values.note("host_ecc_\(kind)_per_second", rates.perSecond("ecc \(kind)", counts.reduce(0, &+), at: now)) }
        }
    }

    private var frequency: Double? {
        let kilohertz = sources.frequencies.compactMap(files.number)
        return kilohertz.isEmpty ? nil : kilohertz.reduce(0, +) / Double(kilohertz.count) / 1000
    }
}
