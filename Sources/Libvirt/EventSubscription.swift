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

/// The context of one C callback. libvirt owns a reference from registration until it calls `release`.
final class HandlerBox<Event>: @unchecked Sendable {
    private let handler: Locked<(@Sendable (Event) -> Void)?>

    init(_ handler: @escaping @Sendable (Event) -> Void) { self.handler = Locked(handler) }

    func deliver(_ event: Event) { handler.withLock { $0 }?(event) }
    func cut() { handler.withLock { $0 = nil } }

    static func deliver(_ event: Event, to opaque: UnsafeMutableRawPointer?) {
        guard let opaque else { return }
        Unmanaged<HandlerBox<Event>>.fromOpaque(opaque).takeUnretainedValue().deliver(event)
    }
}

/// The `virFreeCallback` of every `HandlerBox`.
let releaseHandlerBox: @convention(c) (UnsafeMutableRawPointer?) -> Void = { opaque in
    guard let opaque else { return }
    Unmanaged<AnyObject>.fromOpaque(opaque).release()
}

/// A callback as libvirt knows it: its number and how to take it back.
struct EventRegistration: @unchecked Sendable {
    let id: Int32
    /// `virConnectDomainEventDeregisterAny` or `virConnectDomainQemuMonitorEventDeregister`.
    let remove: @convention(c) (OpaquePointer?, Int32) -> Int32

    func deregister(_ connection: OpaquePointer) { _ = remove(connection, id) }
}

extension Connection {
    /// Registers `box` by the C call `body`, which gets the connection and the box's opaque pointer and returns a callback number.
    func subscribe<Event>(_ name: String, _ box: HandlerBox<Event>, remove: @escaping @convention(c) (OpaquePointer?, Int32) -> Int32,
                          _ body: (OpaquePointer, UnsafeMutableRawPointer) -> Int32) throws(LibvirtError) -> EventSubscription {
        let context = Unmanaged<AnyObject>.passRetained(box)
        let token: Int
        do throws(LibvirtError) {
            token = try call(name) { pointer in
                guard let id = ok(body(pointer, context.toOpaque())) else { return nil }
                return track(EventRegistration(id: id, remove: remove), pointer)
            }
        } catch {
            // libvirt calls the free function only for what it registered.
            context.release()
            throw error
        }
        return EventSubscription { [weak self] in
            box.cut()
            self?.untrack(token)
        }
    }

    /// Remembers the registration, so that closing can take it back: each one holds a reference to the C connection. Closed by another thread
    /// in the meantime: it is taken back at once.
    private func track(_ registration: EventRegistration, _ pointer: OpaquePointer) -> Int {
        let token = state.withLock { state -> Int? in
            guard state.pointer != nil else { return nil }
            state.nextToken += 1
            state.registrations[state.nextToken] = registration
            return state.nextToken
        }
        if token == nil { registration.deregister(pointer) }
        return token ?? 0
    }

    /// Deregistering may ask the daemon: not on the caller's thread, which may be the event loop's.
    private func untrack(_ token: Int) {
        guard let registration = state.withLock({ $0.registrations.removeValue(forKey: token) }) else { return }
        DispatchQueue.global().async {
            _ = try? self.call("virConnectDomainEventDeregisterAny") { registration.deregister($0) }
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
