import Foundation

/// A subscription that outlives connections: registered on one at a time.
final class DurableSubscription: @unchecked Sendable {
    typealias Register = @Sendable (Connection) throws(LibvirtError) -> EventSubscription

    private struct State {
        weak var connection: Connection?
        var registration: EventSubscription?
        var isCancelled = false
    }

    private let state = Locked(State())
    private let register: Register

    init(_ register: @escaping Register) { self.register = register }

    /// Registers on `connection`, unless it has done so.
    func attach(to connection: Connection) throws(LibvirtError) {
        let isNew = state.withLock { state in
            guard !state.isCancelled, state.connection !== connection else { return false }
            state.connection = connection
            return true
        }
        guard isNew else { return }
        do throws(LibvirtError) {
            let registration = try register(connection)
            let old = state.withLock { state -> EventSubscription? in
                if state.isCancelled { return registration }
                defer { state.registration = registration }
                return state.registration
            }
            old?.cancel()
        } catch {
            state.withLock { if $0.connection === connection { $0.connection = nil } }
            throw error
        }
    }

    func cancel() {
        let registration = state.withLock { state -> EventSubscription? in
            state.isCancelled = true
            defer { state.registration = nil }
            return state.registration
        }
        registration?.cancel()
    }
}

/// Subscriptions that every new connection gets again. Handlers run on the event loop's thread: return fast. Events between the loss of a
/// connection and the next `.connected` are not seen: compare states then. A failure to register is reported as `.failed`.
extension ReconnectingConnection {
    /// Lifecycle events of the domain with that UUID, or of all; the domain need not exist yet.
    public func onLifecycle(domainUUID: String? = nil, _ handler: @escaping @Sendable (LifecycleEvent) -> Void) -> EventSubscription {
        let uuid = domainUUID?.lowercased()
        return add(DurableSubscription { connection throws(LibvirtError) in
            let domain = try connection.find(uuid)
            return try connection.onLifecycle(domain: domain) { if uuid == nil || $0.domainUUID == uuid { handler($0) } }
        })
    }

    /// QEMU monitor events, likewise.
    public func onMonitorEvent(domainUUID: String? = nil, event: String? = nil, filter: MonitorEventFilter = [],
                               _ handler: @escaping @Sendable (MonitorEvent) -> Void) -> EventSubscription {
        let uuid = domainUUID?.lowercased()
        return add(DurableSubscription { connection throws(LibvirtError) in
            let domain = try connection.find(uuid)
            return try connection.onMonitorEvent(domain: domain, event: event, filter: filter) {
                if uuid == nil || $0.domainUUID == uuid { handler($0) }
            }
        })
    }

    /// Block job events, likewise.
    public func onBlockJob(domainUUID: String? = nil, _ handler: @escaping @Sendable (BlockJobEvent) -> Void) -> EventSubscription {
        let uuid = domainUUID?.lowercased()
        return add(DurableSubscription { connection throws(LibvirtError) in
            let domain = try connection.find(uuid)
            return try connection.onBlockJob(domain: domain) { if uuid == nil || $0.domainUUID == uuid { handler($0) } }
        })
    }
}

extension Connection {
    /// The domain, so that the daemon filters; nil (every domain's events, filtered here) when it does not exist yet.
    fileprivate func find(_ uuid: String?) throws(LibvirtError) -> Domain? {
        guard let uuid else { return nil }
        do throws(LibvirtError) {
            return try lookup(uuid: uuid)
        } catch {
            if error.isNoDomain { return nil }
            throw error
        }
    }
}
