import CLibvirt
import Foundation

/// A handler's registration. It ends by `cancel()`, when its last reference goes, or with the connection, whichever comes first; it does
/// not keep the connection alive.
public final class EventSubscription: @unchecked Sendable {
    private let cancellation: Locked<(() -> Void)?>

    init(_ cancellation: @escaping () -> Void) { self.cancellation = Locked(cancellation) }

    deinit { cancel() }

    /// Ends the subscription. Never waits, callable anywhere, the handler included. No new call of the handler starts afterwards; one that
    /// runs on the event loop's thread may still be ending.
    public func cancel() {
        let cancel = cancellation.withLock { cancellation -> (() -> Void)? in
            defer { cancellation = nil }
            return cancellation
        }
        cancel?()
    }
}

/// What an event comes from. libvirt refuses to register the same C function twice for the same events of a connection ("event callback
/// already tracked"), so each source is registered once, with an `EventHub` for all its handlers.
struct EventSource: Hashable {
    /// `virDomainEventID`; nil for QEMU monitor events.
    var id: Int32?
    var domainUUID: String?
    /// The monitor event's filter.
    var filter: String = ""
    var filterFlags: UInt32 = 0
}

/// What the connection needs of a hub, whatever its events.
class AnyEventHub: @unchecked Sendable {
    var isEmpty: Bool { true }
}

/// The context of one C callback: hands each event to its handlers.
final class EventHub<Event>: AnyEventHub, @unchecked Sendable {
    /// Emptied when cancelled, so that a delivery under way skips it.
    final class Slot: Sendable {
        let handler: Locked<(@Sendable (Event) -> Void)?>
        init(_ handler: @escaping @Sendable (Event) -> Void) { self.handler = Locked(handler) }
    }

    private let slots = Locked<[Slot]>([])

    override var isEmpty: Bool { slots.withLock { $0.isEmpty } }

    func add(_ handler: @escaping @Sendable (Event) -> Void) -> Slot {
        let slot = Slot(handler)
        slots.withLock { $0.append(slot) }
        return slot
    }

    func remove(_ slot: Slot) {
        slot.handler.withLock { $0 = nil }
        slots.withLock { $0.removeAll { $0 === slot } }
    }

    func deliver(_ event: Event) {
        for slot in slots.withLock({ $0 }) { slot.handler.withLock { $0 }?(event) }
    }

    static func deliver(_ event: Event, to opaque: UnsafeMutableRawPointer?) {
        CallbackContext.object(opaque, as: EventHub<Event>.self)?.deliver(event)
    }
}

/// A hub with its registration: a number and how to take it back.
struct EventRegistration: @unchecked Sendable {
    /// `virConnectDomainEventDeregisterAny` or `virConnectDomainQemuMonitorEventDeregister`.
    typealias Remove = @convention(c) (OpaquePointer?, Int32) -> Int32

    let hub: AnyEventHub
    let context: CallbackContext
    let id: Int32
    let remove: Remove

    /// libvirt gives the context back at once, or, when it hands out events at this moment, afterwards.
    func deregister(_ connection: OpaquePointer) { _ = remove(connection, id) }
}

extension Connection {
    /// Adds a handler to `source`, which the C call `register` registers if it is not: it gets the connection and the hub's opaque pointer,
    /// and returns a callback number.
    func subscribe<Event>(_ name: String, _ source: EventSource, remove: @escaping EventRegistration.Remove,
                          _ handler: @escaping @Sendable (Event) -> Void,
                          _ register: (OpaquePointer, UnsafeMutableRawPointer?) -> Int32) throws(LibvirtError) -> EventSubscription {
        // One thread at a time: two must not register the same source, or one take it away while another joins it.
        registrationLock.lock()
        defer { registrationLock.unlock() }
        if let hub = state.withLock({ $0.registrations[source]?.hub }) as? EventHub<Event> {
            return subscription(hub, hub.add(handler), source)
        }
        let hub = EventHub<Event>()
        let slot = hub.add(handler)
        let context = CallbackContext(holding: hub)
        let isOpen: Bool
        do throws(LibvirtError) {
            isOpen = try call(name) { pointer -> Bool? in
                guard let id = ok(register(pointer, context.opaque)) else { return nil }
                return track(EventRegistration(hub: hub, context: context, id: id, remove: remove), source, pointer)
            }
        } catch {
            // libvirt calls the free function only for what it registered, or so it says.
            context.release()
            throw error
        }
        guard isOpen else { throw .closed(name) }
        return subscription(hub, slot, source)
    }

    private func subscription<Event>(_ hub: EventHub<Event>, _ slot: EventHub<Event>.Slot, _ source: EventSource) -> EventSubscription {
        EventSubscription { [weak self] in
            hub.remove(slot)
            if hub.isEmpty { self?.untrack(source) }
        }
    }

    /// Remembers the registration, so that closing can take it back: each one holds a reference to the C connection. False: another thread has
    /// closed meanwhile, and it is taken back at once.
    private func track(_ registration: EventRegistration, _ source: EventSource, _ pointer: OpaquePointer) -> Bool {
        let isOpen = state.withLock { state in
            if state.pointer != nil { state.registrations[source] = registration }
            return state.pointer != nil
        }
        if !isOpen { registration.deregister(pointer) }
        return isOpen
    }

    /// Takes back a source's registration unless a handler has joined again, or it is the connection's last one. Deregistering may ask the
    /// daemon: not on the caller's thread, which may be the event loop's.
    ///
    /// The last one stays, without handlers: when libvirt (9.0, `virObjectEventStateFlush`) purges its last callback behind a dispatch, an event
    /// that was queued meanwhile stays in its queue, and no later one wakes the loop any more.
    private func untrack(_ source: EventSource) {
        DispatchQueue.global().async {
            self.registrationLock.lock()
            defer { self.registrationLock.unlock() }
            let registration = self.state.withLock { state -> EventRegistration? in
                guard state.registrations.count > 1, let registration = state.registrations[source], registration.hub.isEmpty else { return nil }
                return state.registrations.removeValue(forKey: source)
            }
            guard let registration, let pointer = self.borrow() else { return }
            registration.deregister(pointer)
            virConnectClose(pointer)
        }
    }

    /// A stream from a callback registration. It ends when its consumer goes or the connection ends. When the consumer falls behind by
    /// `capacity` events the oldest are dropped.
    func stream<Event: Sendable>(
        capacity: Int, _ register: (@escaping @Sendable (Event) -> Void) throws(LibvirtError) -> EventSubscription
    ) throws(LibvirtError) -> AsyncStream<Event> {
        let (stream, continuation) = AsyncStream.makeStream(of: Event.self, bufferingPolicy: .bufferingNewest(capacity))
        let events = try register { continuation.yield($0) }
        let end = onClose { _ in continuation.finish() }
        continuation.onTermination = { _ in
            events.cancel()
            end.cancel()
        }
        return stream
    }
}
