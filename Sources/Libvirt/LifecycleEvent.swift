import CLibvirt

/// Something happened to a domain (`virConnectDomainEventCallback`).
public struct LifecycleEvent: Sendable, Hashable {
    public enum Event: Sendable, Hashable {
        case defined(DefinedDetail)
        case undefined(detail: Int32)
        case started(StartedDetail)
        case suspended(SuspendedDetail)
        case resumed(ResumedDetail)
        case stopped(StoppedDetail)
        case shutdown(ShutdownDetail)
        case powerManagementSuspended(detail: Int32)
        case crashed(detail: Int32)
        /// A kind that a newer libvirt knows.
        case unknown(Int32, detail: Int32)
    }

    public let domainName: String
    /// Lower-case, with hyphens.
    public let domainUUID: String
    public let event: Event
    /// CLOCK_MONOTONIC when the event loop delivered it here, in nanoseconds.
    public let receivedNanoseconds: UInt64

    public init(domainName: String, domainUUID: String, event: Event, receivedNanoseconds: UInt64) {
        (self.domainName, self.domainUUID, self.event) = (domainName, domainUUID, event)
        self.receivedNanoseconds = receivedNanoseconds
    }

    /// From a callback's borrowed domain pointer.
    init?(_ domain: OpaquePointer?, kind: Int32, detail: Int32) {
        let received = monotonicNanoseconds()
        guard let domain, let name = borrowed(virDomainGetName(domain)),
              let uuid = uuidString({ virDomainGetUUIDString(domain, $0) }) else { return nil }
        self.init(domainName: name, domainUUID: uuid, event: Event(kind: kind, detail: detail), receivedNanoseconds: received)
    }
}

extension LifecycleEvent.Event {
    /// `virDomainEventType` and the detail enumeration that belongs to it.
    public init(kind: Int32, detail: Int32) {
        self = switch kind {
        case 0: .defined(.init(rawValue: detail))
        case 1: .undefined(detail: detail)
        case 2: .started(.init(rawValue: detail))
        case 3: .suspended(.init(rawValue: detail))
        case 4: .resumed(.init(rawValue: detail))
        case 5: .stopped(.init(rawValue: detail))
        case 6: .shutdown(.init(rawValue: detail))
        case 7: .powerManagementSuspended(detail: detail)
        case 8: .crashed(detail: detail)
        default: .unknown(kind, detail: detail)
        }
    }
}

/// `virDomainEventDefinedDetailType`.
public struct DefinedDetail: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let added = DefinedDetail(rawValue: 0)
    public static let updated = DefinedDetail(rawValue: 1)
    public static let renamed = DefinedDetail(rawValue: 2)
    public static let fromSnapshot = DefinedDetail(rawValue: 3)
    public static let names: [Int32: String] = [0: "added", 1: "updated", 2: "renamed", 3: "from snapshot"]
}

/// `virDomainEventStartedDetailType`.
public struct StartedDetail: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let booted = StartedDetail(rawValue: 0)
    public static let migrated = StartedDetail(rawValue: 1)
    public static let restored = StartedDetail(rawValue: 2)
    public static let fromSnapshot = StartedDetail(rawValue: 3)
    public static let wakeup = StartedDetail(rawValue: 4)
    public static let names: [Int32: String] = [0: "booted", 1: "migrated", 2: "restored", 3: "from snapshot", 4: "wakeup"]
}

/// `virDomainEventSuspendedDetailType`.
public struct SuspendedDetail: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let paused = SuspendedDetail(rawValue: 0)
    public static let migrated = SuspendedDetail(rawValue: 1)
    public static let ioError = SuspendedDetail(rawValue: 2)
    public static let watchdog = SuspendedDetail(rawValue: 3)
    public static let restored = SuspendedDetail(rawValue: 4)
    public static let fromSnapshot = SuspendedDetail(rawValue: 5)
    public static let apiError = SuspendedDetail(rawValue: 6)
    public static let postcopy = SuspendedDetail(rawValue: 7)
    public static let postcopyFailed = SuspendedDetail(rawValue: 8)
    public static let names: [Int32: String] = [
        0: "paused", 1: "migrated", 2: "I/O error", 3: "watchdog", 4: "restored", 5: "from snapshot", 6: "API error", 7: "postcopy",
        8: "postcopy failed",
    ]
}

/// `virDomainEventResumedDetailType`.
public struct ResumedDetail: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unpaused = ResumedDetail(rawValue: 0)
    public static let migrated = ResumedDetail(rawValue: 1)
    public static let fromSnapshot = ResumedDetail(rawValue: 2)
    public static let postcopy = ResumedDetail(rawValue: 3)
    public static let postcopyFailed = ResumedDetail(rawValue: 4)
    public static let names: [Int32: String] = [0: "unpaused", 1: "migrated", 2: "from snapshot", 3: "postcopy", 4: "postcopy failed"]
}

/// `virDomainEventStoppedDetailType`.
public struct StoppedDetail: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    /// The guest shut itself down, or was asked to.
    public static let shutdown = StoppedDetail(rawValue: 0)
    /// Somebody destroyed it.
    public static let destroyed = StoppedDetail(rawValue: 1)
    /// The guest crashed.
    public static let crashed = StoppedDetail(rawValue: 2)
    /// It runs on another host now.
    public static let migrated = StoppedDetail(rawValue: 3)
    public static let saved = StoppedDetail(rawValue: 4)
    /// The hypervisor failed: QEMU died.
    public static let failed = StoppedDetail(rawValue: 5)
    public static let fromSnapshot = StoppedDetail(rawValue: 6)
    public static let names: [Int32: String] = [
        0: "shutdown", 1: "destroyed", 2: "crashed", 3: "migrated", 4: "saved", 5: "failed", 6: "from snapshot",
    ]
}

/// `virDomainEventShutdownDetailType`.
public struct ShutdownDetail: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let finished = ShutdownDetail(rawValue: 0)
    /// From inside the guest.
    public static let guest = ShutdownDetail(rawValue: 1)
    /// By a signal to QEMU.
    public static let host = ShutdownDetail(rawValue: 2)
    public static let names: [Int32: String] = [0: "finished", 1: "guest", 2: "host"]
}
