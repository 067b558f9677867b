import CLibvirt
import Foundation

/// Why a connection ended (`virConnectCloseReason`).
public struct CloseReason: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }

    /// A misbehaving socket or protocol.
    public static let error = CloseReason(rawValue: 0)
    /// The daemon closed its end, or died.
    public static let endOfFile = CloseReason(rawValue: 1)
    /// The daemon stopped answering.
    public static let keepAlive = CloseReason(rawValue: 2)
    /// This side closed it.
    public static let client = CloseReason(rawValue: 3)

    public static let names: [Int32: String] = [0: "error", 1: "end of file", 2: "keepalive timeout", 3: "closed by client"]
}

/// The close callback's context, which does not hold the connection.
final class CloseBox: @unchecked Sendable {
    private let lock = NSLock()
    private weak var target: Connection?

    var connection: Connection? {
        get { lock.lock(); defer { lock.unlock() }; return target }
        set { lock.lock(); defer { lock.unlock() }; target = newValue }
    }
}

/// The `virConnectCloseFunc`. libvirt holds a lock around it that unregistering takes as well: handlers must not close from here, which is
/// why `Connection.close` goes elsewhere when it finds itself on the event loop.
let closeCallback: @convention(c) (OpaquePointer?, Int32, UnsafeMutableRawPointer?) -> Void = { _, reason, opaque in
    CallbackContext.object(opaque, as: CloseBox.self)?.connection?.lost(CloseReason(rawValue: reason))
}

extension Connection {
    /// Calls `handler` once when the connection ends, for whatever reason; at once, on the caller's thread, if it has ended already. It runs on
    /// the event loop's thread (or in `close()`): return fast (`virConnectRegisterCloseCallback`).
    public func onClose(_ handler: @escaping @Sendable (CloseReason) -> Void) -> EventSubscription {
        let (token, reason) = state.withLock { state -> (Int, CloseReason?) in
            if let reason = state.closeReason { return (0, reason) }
            state.nextToken += 1
            state.closeHandlers[state.nextToken] = handler
            return (state.nextToken, nil)
        }
        if let reason {
            handler(reason)
            return EventSubscription {}
        }
        return EventSubscription { [weak self] in
            _ = self?.state.withLock { $0.closeHandlers.removeValue(forKey: token) }
        }
    }

    /// The reason for which the connection ended, then nothing more.
    public var closeEvents: AsyncStream<CloseReason> {
        let (stream, continuation) = AsyncStream.makeStream(of: CloseReason.self)
        let subscription = onClose { reason in
            continuation.yield(reason)
            continuation.finish()
        }
        continuation.onTermination = { _ in subscription.cancel() }
        return stream
    }
}
