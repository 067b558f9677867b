import ControlProtocol

/// How a live migration would go, from a few measured numbers. A pass sends what the pass before left dirty; the guest dirties more meanwhile,
/// and when what is left fits into the downtime the guest is stopped for it (QEMU, migration/migration.c and ram.c).
///
/// What a guest dirties in a second says little about a tenth of it: it may be a tenth of that, or all of it, over and over. So both are tried.
struct MigrationEstimate: Equatable {
    struct Input {
        /// What the first pass sends; pages of zeros cost next to nothing.
        var memoryBytes: UInt64
        /// Copied before the memory.
        var diskBytes: UInt64
        /// Different bytes dirtied in one second.
        var dirtyBytesPerSecond: UInt64
        var bandwidthBytesPerSecond: UInt64
        var downtimeLimitMs: UInt64
        var autoConverge = true
        var postcopy = false
    }

    struct Course: Equatable {
        var durationMs: Double
        var downtimeMs: Double
        var bytes: UInt64
        var throttlePercent: Int
    }

    var converges: MigrationForecast.Convergence
    /// Nil when it does not converge.
    var course: Course?

    init(_ input: Input) {
        if let course = Self.course(input, spread: false) {
            (converges, self.course) = (.yes, course)
        } else if let course = Self.course(input, spread: true) {
            (converges, self.course) = (.uncertain, course)
        } else {
            (converges, course) = (.no, nil)
        }
    }

    /// After this many passes it does not end any more.
    private static let mostPasses = 200
    // QEMU's defaults for auto-converge: cpu-throttle-initial, cpu-throttle-increment, max-cpu-throttle, throttle-trigger-threshold.
    private static let (firstThrottle, moreThrottle, mostThrottle, trigger) = (20, 10, 99, 0.5)

    /// `spread`: in a part of a second that part of it is dirtied, at best; else all of it, at worst. Nil when it does not end.
    private static func course(_ input: Input, spread: Bool) -> Course? {
        let bandwidth = Double(max(1, input.bandwidthBytesPerSecond)), memory = Double(input.memoryBytes)
        var seconds = Double(input.diskBytes) / bandwidth, sent = Double(input.diskBytes), pending = memory
        var throttle = 0, strikes = 0
        for _ in 0..<mostPasses {
            let pass = pending / bandwidth
            seconds += pass
            sent += pending
            let share = Double(100 - throttle) / 100
            let dirtied = min(memory, Double(input.dirtyBytesPerSecond) * share * (spread ? pass : max(1, pass)))
            // With post-copy the guest goes over after the first pass, and its downtime is that of the devices.
            guard !input.postcopy, dirtied / bandwidth * 1000 > Double(input.downtimeLimitMs) else {
                seconds += dirtied / bandwidth
                sent += dirtied
                return Course(durationMs: seconds * 1000, downtimeMs: input.postcopy ? 0 : dirtied / bandwidth * 1000, bytes: UInt64(sent), throttlePercent: throttle)
            }
            if input.autoConverge, dirtied > pending * trigger {
                strikes += 1
                if strikes == 2 {
                    strikes = 0
                    throttle = throttle == 0 ? firstThrottle : min(mostThrottle, throttle + moreThrottle)
                }
            }
            pending = dirtied
        }
        return nil
    }
}
