/// How a domain without a shadow is to be moved by libvirt's live migration, as `swap --to` was told.
public struct MigrationOptions: Codable, Sendable, Equatable {
    /// Of memory and of each disk; nil: as fast as it goes.
    public var bandwidthBytesPerSecond: UInt64?
    /// How long the guest may stand still at the end; nil: QEMU's default, 300 ms.
    public var downtimeMs: UInt64?
    /// After one pass over its memory the guest goes over and fetches the rest as it needs it.
    public var postcopy = false
    /// The guest is slowed down when it dirties memory faster than that is sent.
    public var autoConverge = true
    /// Connections of QEMU's multifd; nil: one plain connection.
    public var parallel: Int?
    public var compress = false
    /// QEMU's connections between the hosts are encrypted.
    public var tls = false
    /// Measure and predict, move nothing.
    public var dryRun = false
    /// The migration is cancelled after this long.
    public var timeoutSeconds: Double?
    /// How this host's libvirt reaches the target's; nil: as `peers` says.
    public var uri: String?

    public static let bandwidthRangeMiB: ClosedRange<UInt64> = 1...1_048_576
    /// QEMU's own limit is 2000 s.
    public static let downtimeRangeMs: ClosedRange<UInt64> = 1...2_000_000
    public static let parallelRange = 1...255
    public static let timeoutRangeSeconds: ClosedRange<Double> = 1...604_800

    enum CodingKeys: String, CodingKey {
        case postcopy, parallel, compress, tls, uri
        case bandwidthBytesPerSecond = "bandwidth_bytes_per_second"
        case downtimeMs = "downtime_ms"
        case autoConverge = "auto_converge"
        case dryRun = "dry_run"
        case timeoutSeconds = "timeout_seconds"
    }

    public init() {}

    /// What is out of range; nil when nothing is. The service asks as well: the socket is open to other programs.
    public var problem: String? {
        func outside(_ what: String, _ range: String) -> String { "The \(what) is outside \(range)" }
        if let bandwidthBytesPerSecond, !Self.bandwidthRangeMiB.contains(bandwidthBytesPerSecond >> 20) { return outside("bandwidth", "1 MiB/s to 1 TiB/s") }
        if let downtimeMs, !Self.downtimeRangeMs.contains(downtimeMs) { return outside("downtime", "1 to 2000000 ms") }
        if let parallel, !Self.parallelRange.contains(parallel) { return outside("number of connections", "1 to 255") }
        if let timeoutSeconds, !Self.timeoutRangeSeconds.contains(timeoutSeconds) { return outside("time limit", "1 s to 7 days") }
        if let uri, !uri.contains("://") { return "'\(uri)' is no libvirt URI" }
        return nil
    }
}

/// The answer to `swap --to` once the guest runs at the target.
public struct MigrationReport: Codable, Sendable, Equatable {
    public enum Mode: String, Codable, Sendable {
        /// All of its memory was there before it ran.
        case precopy
        /// It ran first; the rest of its memory came after.
        case postcopy
    }
    public var schema = ControlProtocolVersion.schema
    public var domain: String
    public var from: String
    public var to: String
    public var mode: Mode
    /// From the order to libvirt until it was over, milliseconds.
    public var totalMs: Double
    /// How long the guest stood still, as libvirt measured it, milliseconds; absent when it did not tell.
    public var downtimeMs: Double?
    /// Memory and disks together.
    public var bytes: UInt64
    /// What crossed the wire.
    public var memoryBytes: UInt64
    /// Of the disks that were copied, as the guest sees them; what is zeros there need not cross the wire.
    public var diskBytes: UInt64
    /// Passes over its memory; absent when libvirt did not tell.
    public var passes: UInt64?
    /// Most CPU time that auto-converge took from the guest, percent; absent when none.
    public var throttlePercent: Int64?
    /// It is defined at the target and not here; false: it was transient and is.
    public var persistent: Bool
    public var autostart: Bool
    /// Where the guest's disks are now, by target; shared ones are not listed.
    public var disks: [String: String]
    /// What an administrator should know.
    public var warnings: [String]

    enum CodingKeys: String, CodingKey {
        case schema, domain, from, to, mode, bytes, passes, persistent, autostart, disks, warnings
        case totalMs = "total_ms"
        case downtimeMs = "downtime_ms"
        case memoryBytes = "memory_bytes"
        case diskBytes = "disk_bytes"
        case throttlePercent = "throttle_percent"
    }

    public init(domain: String, from: String, to: String, mode: Mode, totalMs: Double, downtimeMs: Double? = nil, memoryBytes: UInt64, diskBytes: UInt64,
                passes: UInt64? = nil, throttlePercent: Int64? = nil, persistent: Bool, autostart: Bool, disks: [String: String] = [:], warnings: [String] = []) {
        self.domain = domain
        self.from = from
        self.to = to
        self.mode = mode
        self.totalMs = totalMs
        self.downtimeMs = downtimeMs
        bytes = memoryBytes + diskBytes
        self.memoryBytes = memoryBytes
        self.diskBytes = diskBytes
        self.passes = passes
        self.throttlePercent = throttlePercent
        self.persistent = persistent
        self.autostart = autostart
        self.disks = disks
        self.warnings = warnings
    }
}

/// The answer to `swap --to --dry-run`.
public struct MigrationForecast: Codable, Sendable, Equatable {
    public enum Convergence: String, Codable, Sendable {
        /// Even if the guest dirties again in each pass all that it dirtied in a second.
        case yes
        /// If what it dirties in a second is spread over that second; not if it is the same pages over and over.
        case uncertain
        case no
    }
    public enum BandwidthSource: String, Codable, Sendable {
        /// `--bandwidth`.
        case option
        /// What an earlier migration to that host reached.
        case earlier
        /// Nobody said or measured anything: 1 Gbit/s.
        case assumed
    }
    public var schema = ControlProtocolVersion.schema
    public var domain: String
    public var from: String
    public var to: String
    /// What the guest has, and what of it is in use.
    public var memoryBytes: UInt64
    public var residentBytes: UInt64
    /// What its local disks take.
    public var diskBytes: UInt64
    /// Measured for one second, just now; whole MiB, which is all that libvirt tells. The prediction takes one more.
    public var dirtyBytesPerSecond: UInt64
    public var bandwidthBytesPerSecond: UInt64
    public var bandwidthSource: BandwidthSource
    public var downtimeLimitMs: UInt64
    public var converges: Convergence
    /// Of all; absent when it does not converge.
    public var durationMs: Double?
    /// For what is left of its memory at the end; that of its devices comes on top. Absent when it does not converge.
    public var downtimeMs: Double?
    /// What crosses the wire; absent when it does not converge.
    public var bytes: UInt64?
    /// CPU time that auto-converge takes from the guest at the end, percent; 0 when it need not.
    public var throttlePercent: Int
    public var warnings: [String]

    enum CodingKeys: String, CodingKey {
        case schema, domain, from, to, converges, bytes, warnings
        case memoryBytes = "memory_bytes"
        case residentBytes = "resident_bytes"
        case diskBytes = "disk_bytes"
        case dirtyBytesPerSecond = "dirty_bytes_per_second"
        case bandwidthBytesPerSecond = "bandwidth_bytes_per_second"
        case bandwidthSource = "bandwidth_source"
        case downtimeLimitMs = "downtime_limit_ms"
        case durationMs = "duration_ms"
        case downtimeMs = "downtime_ms"
        case throttlePercent = "throttle_percent"
    }

    public init(domain: String, from: String, to: String, memoryBytes: UInt64, residentBytes: UInt64, diskBytes: UInt64, dirtyBytesPerSecond: UInt64,
                bandwidthBytesPerSecond: UInt64, bandwidthSource: BandwidthSource, downtimeLimitMs: UInt64, converges: Convergence, durationMs: Double?,
                downtimeMs: Double?, bytes: UInt64?, throttlePercent: Int, warnings: [String]) {
        self.domain = domain
        self.from = from
        self.to = to
        self.memoryBytes = memoryBytes
        self.residentBytes = residentBytes
        self.diskBytes = diskBytes
        self.dirtyBytesPerSecond = dirtyBytesPerSecond
        self.bandwidthBytesPerSecond = bandwidthBytesPerSecond
        self.bandwidthSource = bandwidthSource
        self.downtimeLimitMs = downtimeLimitMs
        self.converges = converges
        self.durationMs = durationMs
        self.downtimeMs = downtimeMs
        self.bytes = bytes
        self.throttlePercent = throttlePercent
        self.warnings = warnings
    }
}
