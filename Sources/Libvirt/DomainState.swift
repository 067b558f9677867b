/// What a domain does (`virDomainState`).
public struct DomainState: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let noState = DomainState(rawValue: 0)
    public static let running = DomainState(rawValue: 1)
    public static let blocked = DomainState(rawValue: 2)
    public static let paused = DomainState(rawValue: 3)
    /// On its way down.
    public static let shutdown = DomainState(rawValue: 4)
    public static let shutoff = DomainState(rawValue: 5)
    public static let crashed = DomainState(rawValue: 6)
    public static let powerManagementSuspended = DomainState(rawValue: 7)
    public static let names: [Int32: String] = [
        0: "no state", 1: "running", 2: "idle", 3: "paused", 4: "in shutdown", 5: "shut off", 6: "crashed", 7: "pmsuspended",
    ]

    /// The name of a reason that came with this state; its number when there is no name.
    public func describe(reason: Int32) -> String {
        switch self {
        case .running: RunningReason(rawValue: reason).description
        case .paused: PausedReason(rawValue: reason).description
        case .shutdown: ShutdownReason(rawValue: reason).description
        case .shutoff: ShutoffReason(rawValue: reason).description
        case .crashed: CrashedReason(rawValue: reason).description
        default: reason == 0 ? "unknown" : String(reason)
        }
    }
}

/// `virDomainRunningReason`.
public struct RunningReason: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = RunningReason(rawValue: 0)
    public static let booted = RunningReason(rawValue: 1)
    public static let migrated = RunningReason(rawValue: 2)
    public static let restored = RunningReason(rawValue: 3)
    public static let fromSnapshot = RunningReason(rawValue: 4)
    public static let unpaused = RunningReason(rawValue: 5)
    public static let migrationCanceled = RunningReason(rawValue: 6)
    public static let saveCanceled = RunningReason(rawValue: 7)
    public static let wakeup = RunningReason(rawValue: 8)
    public static let crashed = RunningReason(rawValue: 9)
    public static let postcopy = RunningReason(rawValue: 10)
    public static let postcopyFailed = RunningReason(rawValue: 11)
    public static let names: [Int32: String] = [
        0: "unknown", 1: "booted", 2: "migrated", 3: "restored", 4: "from snapshot", 5: "unpaused", 6: "migration canceled",
        7: "save canceled", 8: "wakeup", 9: "crashed", 10: "postcopy", 11: "postcopy failed",
    ]
}

/// `virDomainPausedReason`.
public struct PausedReason: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = PausedReason(rawValue: 0)
    public static let user = PausedReason(rawValue: 1)
    public static let migration = PausedReason(rawValue: 2)
    public static let save = PausedReason(rawValue: 3)
    public static let dump = PausedReason(rawValue: 4)
    public static let ioError = PausedReason(rawValue: 5)
    public static let watchdog = PausedReason(rawValue: 6)
    public static let fromSnapshot = PausedReason(rawValue: 7)
    public static let shuttingDown = PausedReason(rawValue: 8)
    public static let snapshot = PausedReason(rawValue: 9)
    public static let crashed = PausedReason(rawValue: 10)
    public static let startingUp = PausedReason(rawValue: 11)
    public static let postcopy = PausedReason(rawValue: 12)
    public static let postcopyFailed = PausedReason(rawValue: 13)
    public static let names: [Int32: String] = [
        0: "unknown", 1: "user", 2: "migration", 3: "save", 4: "dump", 5: "I/O error", 6: "watchdog", 7: "from snapshot",
        8: "shutting down", 9: "snapshot", 10: "crashed", 11: "starting up", 12: "postcopy", 13: "postcopy failed",
    ]
}

/// `virDomainShutdownReason`.
public struct ShutdownReason: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = ShutdownReason(rawValue: 0)
    public static let user = ShutdownReason(rawValue: 1)
    public static let names: [Int32: String] = [0: "unknown", 1: "user"]
}

/// `virDomainShutoffReason`.
public struct ShutoffReason: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = ShutoffReason(rawValue: 0)
    public static let shutdown = ShutoffReason(rawValue: 1)
    public static let destroyed = ShutoffReason(rawValue: 2)
    public static let crashed = ShutoffReason(rawValue: 3)
    public static let migrated = ShutoffReason(rawValue: 4)
    public static let saved = ShutoffReason(rawValue: 5)
    public static let failed = ShutoffReason(rawValue: 6)
    public static let fromSnapshot = ShutoffReason(rawValue: 7)
    /// The daemon decided so while it processed shutdown or a crash; the reason is not known.
    public static let daemon = ShutoffReason(rawValue: 8)
    public static let names: [Int32: String] = [
        0: "unknown", 1: "shutdown", 2: "destroyed", 3: "crashed", 4: "migrated", 5: "saved", 6: "failed", 7: "from snapshot", 8: "daemon",
    ]
}

/// `virDomainCrashedReason`.
public struct CrashedReason: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = CrashedReason(rawValue: 0)
    public static let panicked = CrashedReason(rawValue: 1)
    public static let names: [Int32: String] = [0: "unknown", 1: "panicked"]
}
