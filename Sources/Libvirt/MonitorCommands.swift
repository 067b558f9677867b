/// QMP commands by their names in QEMU's `qapi/`. Each one's absence in an older QEMU ends as `MonitorError.isCommandNotFound`.

/// `query-status` (`qapi/run-state.json`).
public struct QueryStatus: MonitorCommand, Sendable {
    public static let name = "query-status"
    public init() {}

    public struct Answer: Decodable, Sendable, Hashable {
        public let running: Bool
        /// `running`, `paused`, `colo`, `inmigrate`, `postmigrate`, `finish-migrate`, ...
        public let status: String
    }
}

/// `query-named-block-nodes` without their backing chains (`qapi/block-core.json`): disks, and the filters that jobs put on them.
public struct QueryNamedBlockNodes: MonitorCommand, Sendable {
    public static let name = "query-named-block-nodes"
    public let flat = true
    public init() {}

    public struct Node: Decodable, Sendable, Hashable {
        /// `raw`, `qcow2`, `file`, ...; `mirror_top` for a mirror's filter.
        public let drv: String
    }
    public typealias Answer = [Node]
}

/// `query-version` (`qapi/control.json`).
public struct QueryVersion: MonitorCommand, Sendable {
    public static let name = "query-version"
    public init() {}

    public struct Answer: Decodable, Sendable, Hashable {
        struct Triple: Decodable, Sendable, Hashable {
            let major, minor, micro: Int
        }
        let qemu: Triple
        /// The distribution's addition, for example ` (Debian 1:7.2+dfsg-7+deb12u18)`.
        public let package: String
        public var version: Version { Version(qemu.major, qemu.minor, qemu.micro) }
    }
}

/// `query-cpus-fast` (`qapi/machine.json`): doesn't disturb the guest.
public struct QueryCPUsFast: MonitorCommand, Sendable {
    public static let name = "query-cpus-fast"
    public typealias Answer = [CPU]
    public init() {}

    public struct CPU: Decodable, Sendable, Hashable {
        public let index: Int
        /// The host's thread.
        public let threadID: Int
        /// For example `x86_64`; absent in some versions.
        public let target: String?

        enum CodingKeys: String, CodingKey {
            case index = "cpu-index", threadID = "thread-id", target
        }
    }
}

/// `cont`: lets the CPUs run. libvirt learns of it by the RESUME event; prefer `Domain.resume`.
public struct Cont: MonitorCommand, Sendable {
    public static let name = "cont"
    public typealias Answer = EmptyAnswer
    public init() {}
}

/// `stop`; prefer `Domain.suspend`.
public struct Stop: MonitorCommand, Sendable {
    public static let name = "stop"
    public typealias Answer = EmptyAnswer
    public init() {}
}

/// `x-colo-lost-heartbeat` (`qapi/migration.json`): ends COLO; a guest that stands in `colo` runs on.
public struct ColoLostHeartbeat: MonitorCommand, Sendable {
    public static let name = "x-colo-lost-heartbeat"
    public typealias Answer = EmptyAnswer
    public init() {}
}

/// `query-colo-status` (`qapi/migration.json`).
public struct QueryColoStatus: MonitorCommand, Sendable {
    public static let name = "query-colo-status"
    public init() {}

    public struct Answer: Decodable, Sendable, Hashable {
        /// `none`, `primary` or `secondary`.
        public let mode: String
        public let lastMode: String
        /// Why it ended: `none`, `request`, `error`, `processing`.
        public let reason: String

        enum CodingKeys: String, CodingKey {
            case mode, lastMode = "last-mode", reason
        }
    }
}

/// `query-memory-size-summary` (`qapi/machine.json`), in bytes.
public struct QueryMemorySizeSummary: MonitorCommand, Sendable {
    public static let name = "query-memory-size-summary"
    public init() {}

    public struct Answer: Decodable, Sendable, Hashable {
        public let baseMemory: UInt64
        public let pluggedMemory: UInt64?

        enum CodingKeys: String, CodingKey {
            case baseMemory = "base-memory", pluggedMemory = "plugged-memory"
        }
    }
}
