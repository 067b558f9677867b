import CLibvirt
import Foundation

/// A connection to a hypervisor driver (`virConnectPtr`).
///
/// Every method that talks to the daemon is synchronous and blocks until the answer is there: keep such calls off Swift's cooperative
/// thread pool. A daemon that hangs is noticed by keepalive, which then fails the calls that wait. Methods may be called from any number
/// of threads at a time.
///
/// A connection closes by `close()`, or when its last reference goes. libvirt counts references of its own: as long as a `Domain`,
/// `StoragePool` or `StorageVolume` of this connection lives, the socket stays open.
public final class Connection: @unchecked Sendable {
    /// Changes under the lock; no libvirt call that could wait is made while it is held.
    struct State {
        var pointer: OpaquePointer?
        var closeReason: CloseReason?
        var nextToken = 0
        var registrations: [EventSource: EventRegistration] = [:]
        var closeHandlers: [Int: @Sendable (CloseReason) -> Void] = [:]
    }

    let state: Locked<State>
    /// Held while an event source is registered or taken back, the call to the daemon included.
    let registrationLock = NSLock()
    private let closeBox = CloseBox()
    private let closeContext: CallbackContext

    /// Opens a connection (`virConnectOpen`, `virConnectOpenReadOnly`, `virConnectSetKeepAlive`). Starts the event loop if need be.
    ///
    /// - Parameters:
    ///   - uri: for example `qemu:///system` or `qemu+tls://host/system`. nil: the environment's LIBVIRT_DEFAULT_URI, or else `qemu:///system`.
    ///   - keepAlive: a probe after so many seconds of silence, and how many may stay unanswered before the connection counts as lost.
    ///     Local drivers such as `test:///default` have no keepalive, and ignore it.
    public static func open(_ uri: String? = nil, readOnly: Bool = false,
                            keepAlive: (interval: Int32, count: UInt32)? = (5, 3)) throws(LibvirtError) -> Connection {
        EventLoop.start()
        let uri = uri ?? defaultURI
        guard let pointer = readOnly ? virConnectOpenReadOnly(uri) : virConnectOpen(uri) else {
            throw .last(readOnly ? "virConnectOpenReadOnly" : "virConnectOpen")
        }
        let connection = Connection(pointer)
        if let keepAlive, virConnectSetKeepAlive(pointer, keepAlive.interval, keepAlive.count) < 0 {
            let error = LibvirtError.last("virConnectSetKeepAlive")
            if !error.isNotSupported { throw error }
        }
        if virConnectRegisterCloseCallback(pointer, closeCallback, connection.closeContext.opaque, CallbackContext.free) < 0 {
            let error = LibvirtError.last("virConnectRegisterCloseCallback")
            connection.closeContext.release()
            throw error
        }
        return connection
    }

    /// LIBVIRT_DEFAULT_URI, or else `qemu:///system`.
    public static var defaultURI: String {
        guard let uri = ProcessInfo.processInfo.environment["LIBVIRT_DEFAULT_URI"], !uri.isEmpty else { return "qemu:///system" }
        return uri
    }

    private init(_ pointer: OpaquePointer) {
        state = Locked(State(pointer: pointer))
        closeContext = CallbackContext(holding: closeBox)
        closeBox.connection = self
    }

    deinit {
        // The last reference may go anywhere, on the event loop too, where closing could wait for itself.
        guard let remains = takeApart() else { return }
        lost(.client)
        DispatchQueue.global().async { remains.close() }
    }

    /// Ends all subscriptions, tells `onClose` handlers and `closeEvents` `.client`, and closes (`virConnectClose`). Calls that run on other
    /// threads end first, and so does a handler, unless it takes longer than two seconds. Closing twice does nothing. On the event loop's thread it returns at once and closes elsewhere.
    public func close() {
        guard let remains = takeApart() else { return }
        lost(.client)
        if EventLoop.isCurrent {
            DispatchQueue.global().async { remains.close() }
        } else {
            remains.close()
        }
    }

    /// Whether the connection can still be used, as far as this side knows; never asks the daemon, never throws (`virConnectIsAlive`).
    public var isAlive: Bool {
        if state.withLock({ $0.closeReason != nil }) { return false }
        return (try? call("virConnectIsAlive") { truth(virConnectIsAlive($0)) }) ?? false
    }

    /// Runs a C call with the pointer, which stays valid for the call even if another thread closes meanwhile. nil from `body` means that it
    /// failed; the error is read right there, on the same thread.
    func call<Result>(_ name: String, _ body: (OpaquePointer) -> Result?) throws(LibvirtError) -> Result {
        guard let pointer = borrow() else { throw .closed(name) }
        defer { virConnectClose(pointer) }
        guard let result = body(pointer) else { throw .last(name) }
        return result
    }

    /// The pointer with a reference of its own, to be given back by `virConnectClose`; nil when closed.
    func borrow() -> OpaquePointer? {
        state.withLock { state in
            if let pointer = state.pointer { virConnectRef(pointer) }
            return state.pointer
        }
    }

    /// Marks the connection as gone and tells everybody who asked to be told. Only the first reason counts.
    func lost(_ reason: CloseReason) {
        let handlers = state.withLock { state -> [@Sendable (CloseReason) -> Void] in
            guard state.closeReason == nil else { return [] }
            state.closeReason = reason
            defer { state.closeHandlers = [:] }
            return Array(state.closeHandlers.values)
        }
        handlers.forEach { $0(reason) }
    }

    private func takeApart() -> Remains? {
        state.withLock { state in
            guard let pointer = state.pointer else { return nil }
            defer { (state.pointer, state.registrations) = (nil, [:]) }
            return Remains(pointer: pointer, registrations: Array(state.registrations.values), closeBox: closeBox, closeContext: closeContext)
        }
    }

    /// What is left to do after the last use. Callbacks hold references to the connection, so they go first.
    private struct Remains: @unchecked Sendable {
        let pointer: OpaquePointer
        let registrations: [EventRegistration]
        let closeBox: CloseBox
        let closeContext: CallbackContext

        /// A handler that takes longer holds up the closing no more.
        private static let dispatchLimitNanoseconds: UInt64 = 2_000_000_000

        func close() {
            closeBox.connection = nil
            for registration in registrations { registration.deregister(pointer) }
            // Where events are being handed out libvirt keeps its references until that is over. The last one must not go there: the event loop would then
            // wait for the daemon's answer to the farewell, with the lock held that each event to come needs.
            let end = monotonicNanoseconds() + Self.dispatchLimitNanoseconds
            for registration in registrations { _ = registration.context.waitUntilReleased(by: end) }
            virConnectUnregisterCloseCallback(pointer, closeCallback)
            // Drivers without a close event accept the callback, and never free it.
            closeContext.release()
            virConnectClose(pointer)
        }
    }
}
