import CLibvirt

/// A QEMU monitor event, as QEMU sent it (`virConnectDomainQemuMonitorEventCallback`).
public struct MonitorEvent: Sendable, Hashable {
    public let domainName: String
    public let domainUUID: String
    /// For example `STOP`, `RESUME`, `MIGRATION`, `COLO_EXIT`.
    public let name: String
    /// QEMU's own time of the event since the epoch of the host's wall clock; -1 when QEMU gave none.
    public let seconds: Int64
    /// Microseconds within the second.
    public let microseconds: UInt32
    /// The event's `data` as JSON; nil when there is none.
    public let details: String?
    /// CLOCK_MONOTONIC when the event loop delivered it here, in nanoseconds.
    public let receivedNanoseconds: UInt64

    /// The details, decoded.
    public func decode<Details: Decodable>(_ type: Details.Type = Details.self) throws -> Details {
        try JSONCoding.decode(type, from: details ?? "{}")
    }
}

/// A block job of a disk came to an end or a turning point (`virConnectDomainEventBlockJobCallback`, event BLOCK_JOB_2).
public struct BlockJobEvent: Sendable, Hashable {
    public let domainName: String
    public let domainUUID: String
    /// The disk's target, for example `vda`.
    public let disk: String
    public let type: BlockJobType
    public let status: BlockJobStatus
    public let receivedNanoseconds: UInt64
}

/// How to read the event filter of `onMonitorEvent` (`virConnectDomainQemuMonitorEventRegisterFlags`).
public struct MonitorEventFilter: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// The filter is a regular expression, not a literal name.
    public static let regex = MonitorEventFilter(rawValue: VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX.rawValue)
    public static let ignoringCase = MonitorEventFilter(rawValue: VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_NOCASE.rawValue)
}

/// Handlers run on the event loop's thread the moment an event arrives: return fast, don't call libvirt from there. A handler that captures
/// its connection keeps it open until the subscription is cancelled. The streams are the same events for consumers that are not in a
/// hurry; they hold `capacity` events, drop the oldest beyond, and end with the connection.
extension Connection {
    /// Domain lifecycle events, of one domain or all (`virConnectDomainEventRegisterAny`, VIR_DOMAIN_EVENT_ID_LIFECYCLE).
    public func onLifecycle(domain: Domain? = nil,
                            _ handler: @escaping @Sendable (LifecycleEvent) -> Void) throws(LibvirtError) -> EventSubscription {
        let callback: virConnectDomainEventCallback = { _, domain, kind, detail, opaque in
            if let event = LifecycleEvent(domain, kind: kind, detail: detail) { EventHub.deliver(event, to: opaque) }
            return 0
        }
        return try subscribe(domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE, handler,
                             unsafeBitCast(callback, to: virConnectDomainEventGenericCallback.self))
    }

    public func lifecycleEvents(domain: Domain? = nil, capacity: Int = 4096) throws(LibvirtError) -> AsyncStream<LifecycleEvent> {
        try stream(capacity: capacity) { handler throws(LibvirtError) in try onLifecycle(domain: domain, handler) }
    }

    /// QEMU monitor events by name, of one domain or all; nil: every event (`virConnectDomainQemuMonitorEventRegister`).
    public func onMonitorEvent(domain: Domain? = nil, event: String? = nil, filter: MonitorEventFilter = [],
                               _ handler: @escaping @Sendable (MonitorEvent) -> Void) throws(LibvirtError) -> EventSubscription {
        // Without a filter libvirt 9.0's client asks the daemon for the first domain only, and the others' events never come.
        let (pattern, flags) = event.map { ($0, filter) } ?? (".*", [.regex])
        let source = EventSource(id: nil, domainUUID: domain?.uuid, filter: pattern, filterFlags: flags.rawValue)
        return try subscribe("virConnectDomainQemuMonitorEventRegister", source, remove: virConnectDomainQemuMonitorEventDeregister,
                             handler) { connection, opaque in
            withExtendedLifetime(domain) {
                virConnectDomainQemuMonitorEventRegister(connection, domain?.pointer, pattern, monitorCallback, opaque, CallbackContext.free,
                                                         flags.rawValue)
            }
        }
    }

    public func monitorEvents(domain: Domain? = nil, event: String? = nil, filter: MonitorEventFilter = [],
                              capacity: Int = 4096) throws(LibvirtError) -> AsyncStream<MonitorEvent> {
        try stream(capacity: capacity) { handler throws(LibvirtError) in
            try onMonitorEvent(domain: domain, event: event, filter: filter, handler)
        }
    }

    /// Block jobs: ready to pivot, completed, failed, cancelled (`virConnectDomainEventRegisterAny`, VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2).
    public func onBlockJob(domain: Domain? = nil,
                           _ handler: @escaping @Sendable (BlockJobEvent) -> Void) throws(LibvirtError) -> EventSubscription {
        let callback: virConnectDomainEventBlockJobCallback = { _, domain, disk, type, status, opaque in
            let received = monotonicNanoseconds()
            guard let domain, let name = borrowed(virDomainGetName(domain)), let disk = borrowed(disk),
                  let uuid = uuidString({ virDomainGetUUIDString(domain, $0) }) else { return }
            let event = BlockJobEvent(domainName: name, domainUUID: uuid, disk: disk, type: BlockJobType(rawValue: type),
                                      status: BlockJobStatus(rawValue: status), receivedNanoseconds: received)
            EventHub.deliver(event, to: opaque)
        }
        return try subscribe(domain, VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, handler,
                             unsafeBitCast(callback, to: virConnectDomainEventGenericCallback.self))
    }

    public func blockJobEvents(domain: Domain? = nil, capacity: Int = 4096) throws(LibvirtError) -> AsyncStream<BlockJobEvent> {
        try stream(capacity: capacity) { handler throws(LibvirtError) in try onBlockJob(domain: domain, handler) }
    }

    func subscribe<Event>(_ domain: Domain?, _ id: virDomainEventID, _ handler: @escaping @Sendable (Event) -> Void,
                                  _ callback: virConnectDomainEventGenericCallback) throws(LibvirtError) -> EventSubscription {
        let id = Int32(bitPattern: id.rawValue)
        return try subscribe("virConnectDomainEventRegisterAny", EventSource(id: id, domainUUID: domain?.uuid),
                             remove: virConnectDomainEventDeregisterAny, handler) { connection, opaque in
            withExtendedLifetime(domain) {
                virConnectDomainEventRegisterAny(connection, domain?.pointer, id, callback, opaque, CallbackContext.free)
            }
        }
    }
}

private let monitorCallback: virConnectDomainQemuMonitorEventCallback = { _, domain, event, seconds, microseconds, details, opaque in
    let received = monotonicNanoseconds()
    guard let domain, let event = borrowed(event), let name = borrowed(virDomainGetName(domain)),
          let uuid = uuidString({ virDomainGetUUIDString(domain, $0) }) else { return }
    EventHub.deliver(MonitorEvent(domainName: name, domainUUID: uuid, name: event, seconds: seconds, microseconds: microseconds,
                                    details: borrowed(details), receivedNanoseconds: received), to: opaque)
}
