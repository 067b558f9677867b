/// QMP's migration commands (QEMU `qapi/migration.json`).

/// One capability, for example `x-colo` or `background-snapshot`.
public struct MigrationCapability: Codable, Sendable, Hashable {
    public var capability: String
    public var state: Bool

    public init(_ capability: String, _ state: Bool) {
        (self.capability, self.state) = (capability, state)
    }
}

/// `migrate-set-capabilities`: those named; the others stay.
public struct MigrateSetCapabilities: MonitorCommand, Sendable {
    public static let name = "migrate-set-capabilities"
    public typealias Answer = EmptyAnswer
    public var capabilities: [MigrationCapability]

    public init(_ capabilities: [MigrationCapability]) { self.capabilities = capabilities }
    public init(_ capabilities: KeyValuePairs<String, Bool>) {
        self.init(capabilities.map { MigrationCapability($0.key, $0.value) })
    }
}

/// `query-migrate-capabilities`: all that this QEMU knows.
public struct QueryMigrateCapabilities: MonitorCommand, Sendable {
    public static let name = "query-migrate-capabilities"
    public typealias Answer = [MigrationCapability]
    public init() {}
}

/// `migrate-set-parameters`: only what is not nil is sent and changed.
public struct MigrateSetParameters: MonitorCommand, Sendable {
    public static let name = "migrate-set-parameters"
    public typealias Answer = EmptyAnswer
    /// Between COLO checkpoints; may change while COLO runs.
    public var checkpointDelayMilliseconds: UInt32?
    /// Bytes a second; 0: no limit.
    public var maxBandwidth: UInt64?
    public var downtimeLimitMilliseconds: UInt64?
    /// Self-announcements after an incoming migration.
    public var announceInitialMilliseconds: UInt64?
    public var announceMaxMilliseconds: UInt64?
    public var announceRounds: UInt64?
    public var announceStepMilliseconds: UInt64?

    public init(checkpointDelayMilliseconds: UInt32? = nil, maxBandwidth: UInt64? = nil, downtimeLimitMilliseconds: UInt64? = nil) {
        self.checkpointDelayMilliseconds = checkpointDelayMilliseconds
        self.maxBandwidth = maxBandwidth
        self.downtimeLimitMilliseconds = downtimeLimitMilliseconds
    }

    enum CodingKeys: String, CodingKey {
        case checkpointDelayMilliseconds = "x-checkpoint-delay", maxBandwidth = "max-bandwidth"
        case downtimeLimitMilliseconds = "downtime-limit", announceInitialMilliseconds = "announce-initial"
        case announceMaxMilliseconds = "announce-max", announceRounds = "announce-rounds", announceStepMilliseconds = "announce-step"
    }
}

/// `query-migrate-parameters`, by QEMU's names.
public struct QueryMigrateParameters: MonitorCommand, Sendable {
    public static let name = "query-migrate-parameters"
    public typealias Answer = [String: JSONValue]
    public init() {}
}

/// `migrate`: starts; the outcome comes by MIGRATION events (capability `events`, which libvirt turns on) and `query-migrate`.
public struct Migrate: MonitorCommand, Sendable {
    public static let name = "migrate"
    public typealias Answer = EmptyAnswer
    /// For example `unix:/run/worker.sock`.
    public var uri: String
    public init(uri: String) { self.uri = uri }
}

/// `migrate-incoming`: of a QEMU that was started with `-incoming defer`.
public struct MigrateIncoming: MonitorCommand, Sendable {
    public static let name = "migrate-incoming"
    public typealias Answer = EmptyAnswer
    public var uri: String
    public init(uri: String) { self.uri = uri }
}

/// `migrate-continue`: out of a state it waits in, `pre-switchover`.
public struct MigrateContinue: MonitorCommand, Sendable {
    public static let name = "migrate-continue"
    public typealias Answer = EmptyAnswer
    public var state: String
    public init(state: String = "pre-switchover") { self.state = state }
}

/// `migrate_cancel`; the underscore is QEMU's.
public struct MigrateCancel: MonitorCommand, Sendable {
    public static let name = "migrate_cancel"
    public typealias Answer = EmptyAnswer
    public init() {}
}

/// `query-migrate`: the current or last migration.
public struct QueryMigrate: MonitorCommand, Sendable {
    public static let name = "query-migrate"
    public init() {}

    public struct Answer: Decodable, Sendable, Hashable {
        /// nil: none yet. `setup`, `active`, `colo`, `completed`, `failed`, `cancelled`, `pre-switchover`, ...
        public let status: String?
        public let ram: RAM?
        public let totalMilliseconds: Int64?
        public let downtimeMilliseconds: Int64?
        public let expectedDowntimeMilliseconds: Int64?
        public let setupMilliseconds: Int64?
        /// Why it failed, for people.
        public let errorDescription: String?
        /// Since QEMU 6.0.
        public let blockedReasons: [String]?

        enum CodingKeys: String, CodingKey {
            case status, ram, totalMilliseconds = "total-time", downtimeMilliseconds = "downtime"
            case expectedDowntimeMilliseconds = "expected-downtime", setupMilliseconds = "setup-time"
            case errorDescription = "error-desc", blockedReasons = "blocked-reasons"
        }
    }

    /// Bytes, unless the name says otherwise.
    public struct RAM: Decodable, Sendable, Hashable {
        public let transferred, remaining, total: Int64
        /// Pages sent as "all the same byte", and as data.
        public let duplicate, normal: Int64?
        public let megabitsPerSecond: Double?
        public let dirtyPagesPerSecond: Int64?
        /// Passes over the dirty bitmap.
        public let dirtySyncCount: Int64?
        public let pageSize: Int64?

        enum CodingKeys: String, CodingKey {
            case transferred, remaining, total, duplicate, normal, megabitsPerSecond = "mbps"
            case dirtyPagesPerSecond = "dirty-pages-rate", dirtySyncCount = "dirty-sync-count", pageSize = "page-size"
        }
    }
}
