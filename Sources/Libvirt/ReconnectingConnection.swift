import Foundation

/// A connection that comes back. It opens the URI, notices when the connection is lost (close event, keepalive, or a look at it every few
/// seconds), and opens it again after 0.1 s, doubling to 5 s, for as long as it takes. Subscriptions made here are registered again on
/// every new connection. It never exits and never throws: what happens is a `Change`.
///
/// ```
///               opened                    close event
///  connecting ----------> connected ----------------------> connecting
///      | ^
///      '-' open failed: wait, twice as long each time          stop(): stopped, from every state
/// ```
public final class ReconnectingConnection: @unchecked Sendable {
    public enum Change: Sendable {
        /// There is a connection, with all subscriptions registered.
        case connected(Connection)
        case lost(CloseReason)
        /// An attempt to connect failed, or to register a subscription. Attempts go on; only the first failure of an outage is reported, and
        /// then each with another code.
        case failed(LibvirtError)
    }

    public let uri: String
    private let readOnly: Bool
    private let keepAlive: (interval: Int32, count: UInt32)?
    /// Opening, reporting, and noticing losses happen here, one after the other.
    private let queue = DispatchQueue(label: "libvirt-reconnect")
    private let state = Locked(State())
    private let stateChanged = NSCondition()

    private struct State {
        var isStarted = false
        var isStopped = false
        var connection: Connection?
        var closing: EventSubscription?
        var lastFailure: Int32?
        var nextToken = 0
        var observers: [Int: Observer] = [:]
        var subscriptions: [Int: DurableSubscription] = [:]
    }

    private struct Observer {
        let handler: @Sendable (Change) -> Void
        var isActive = false
    }

    private static let firstDelay = 0.1
    private static let lastDelay = 5.0
    /// Seconds between looks at a connection that reports nothing.
    private static let livenessInterval = 5.0

    /// - Parameter uri: nil: `Connection.defaultURI`.
    public init(_ uri: String? = nil, readOnly: Bool = false, keepAlive: (interval: Int32, count: UInt32)? = (5, 3)) {
        self.uri = uri ?? Connection.defaultURI
        self.readOnly = readOnly
        self.keepAlive = keepAlive
    }

    /// Begins to connect; returns at once. Observers and subscriptions may come before or after.
    public func start() {
        let isFirst = state.withLock { state in
            defer { state.isStarted = true }
            return !state.isStarted && !state.isStopped
        }
        if isFirst { queue.async { [weak self] in self?.connect(nextDelay: Self.firstDelay) } }
    }

    /// Closes for good; subscriptions and observers end. Blocks as `Connection.close` does.
    public func stop() {
        let connection = state.withLock { state -> Connection? in
            state.isStopped = true
            (state.observers, state.subscriptions) = ([:], [:])
            defer { (state.connection, state.closing) = (nil, nil) }
            return state.connection
        }
        wakeWaiters()
        connection?.close()
    }

    /// The connection of this moment; nil while there is none. It may be lost by the next call: that call throws a `LibvirtError` with
    /// `isConnectionLost`.
    public var current: Connection? { state.withLock { $0.connection } }

    /// `current`, or an error with `isConnectionLost`.
    public func connection() throws(LibvirtError) -> Connection {
        guard let connection = current else {
            throw LibvirtError(.noConnect, message: "Not connected to \(uri)", call: "virConnectOpen")
        }
        return connection
    }

    /// Blocks until there is a connection; nil when the time is over or `stop` was called.
    public func waitUntilConnected(timeoutSeconds: Double) -> Connection? {
        let deadline = Date(timeIntervalSinceNow: timeoutSeconds)
        stateChanged.lock()
        defer { stateChanged.unlock() }
        while true {
            let (connection, isStopped) = state.withLock { ($0.connection, $0.isStopped) }
            if connection != nil || isStopped { return connection }
            if !stateChanged.wait(until: deadline) { return current }
        }
    }

    /// Calls `observer` at every change, in order, on a queue of its own; first with `.connected` if there is a connection already.
    public func onChange(_ observer: @escaping @Sendable (Change) -> Void) -> EventSubscription {
        let token = state.withLock { state in
            state.nextToken += 1
            state.observers[state.nextToken] = Observer(handler: observer)
            return state.nextToken
        }
        queue.async { [weak self] in
            let connection = self?.state.withLock { state -> Connection? in
                state.observers[token]?.isActive = true
                return state.observers[token] == nil ? nil : state.connection
            }
            if let connection { observer(.connected(connection)) }
        }
        return EventSubscription { [weak self] in _ = self?.state.withLock { $0.observers.removeValue(forKey: token) } }
    }

    /// The changes as a stream, beginning with `.connected` if there is a connection.
    public var changes: AsyncStream<Change> {
        let (stream, continuation) = AsyncStream.makeStream(of: Change.self, bufferingPolicy: .bufferingNewest(256))
        let subscription = onChange { continuation.yield($0) }
        continuation.onTermination = { _ in subscription.cancel() }
        return stream
    }

    /// Keeps `subscription` registered on every connection from now on, the current one before it returns.
    func add(_ subscription: DurableSubscription) -> EventSubscription {
        let (token, connection) = state.withLock { state -> (Int, Connection?) in
            guard !state.isStopped else { return (0, nil) }
            state.nextToken += 1
            state.subscriptions[state.nextToken] = subscription
            return (state.nextToken, state.connection)
        }
        if let connection { attach(subscription, to: connection) }
        return EventSubscription { [weak self] in
            _ = self?.state.withLock { $0.subscriptions.removeValue(forKey: token) }
            subscription.cancel()
        }
    }
}

extension ReconnectingConnection {
    private func connect(nextDelay: Double) {
        guard !state.withLock({ $0.isStopped }) else { return }
        do throws(LibvirtError) {
            connected(try Connection.open(uri, readOnly: readOnly, keepAlive: keepAlive))
        } catch {
            report(error)
            queue.asyncAfter(deadline: .now() + nextDelay) { [weak self] in
                self?.connect(nextDelay: min(nextDelay * 2, Self.lastDelay))
            }
        }
    }

    private func connected(_ connection: Connection) {
        // Before anybody else can use it; and once more for those that were added meanwhile.
        attachAll(to: connection)
        let isStopped = state.withLock { state in
            if !state.isStopped { (state.connection, state.lastFailure) = (connection, nil) }
            return state.isStopped
        }
        if isStopped { return connection.close() }
        attachAll(to: connection)
        let closing = connection.onClose { [weak self, weak connection] reason in
            guard let self, let connection else { return }
            queue.async { self.lost(connection, reason) }
        }
        state.withLock { $0.closing = closing }
        watch(connection)
        wakeWaiters()
        deliver(.connected(connection))
    }

    private func lost(_ connection: Connection, _ reason: CloseReason) {
        let isCurrent = state.withLock { state in
            guard state.connection === connection else { return false }
            state.connection = nil
            return true
        }
        guard isCurrent else { return }
        // May wait for a call that another thread has under way.
        DispatchQueue.global().async { connection.close() }
        deliver(.lost(reason))
        queue.asyncAfter(deadline: .now() + Self.firstDelay) { [weak self] in self?.connect(nextDelay: Self.firstDelay * 2) }
    }

    private func watch(_ connection: Connection) {
        queue.asyncAfter(deadline: .now() + Self.livenessInterval) { [weak self, weak connection] in
            guard let self, let connection, current === connection else { return }
            connection.isAlive ? watch(connection) : lost(connection, .error)
        }
    }

    private func attachAll(to connection: Connection) {
        for subscription in state.withLock({ Array($0.subscriptions.values) }) { attach(subscription, to: connection) }
    }

    private func attach(_ subscription: DurableSubscription, to connection: Connection) {
        do throws(LibvirtError) {
            try subscription.attach(to: connection)
        } catch {
            // A lost connection reports itself, and the next one tries again.
            if !error.isConnectionLost { queue.async { [weak self] in self?.report(error) } }
        }
    }

    private func report(_ error: LibvirtError) {
        let isNew = state.withLock { state in
            defer { state.lastFailure = error.code }
            return state.lastFailure != error.code
        }
        if isNew { deliver(.failed(error)) }
    }

    private func deliver(_ change: Change) {
        for observer in state.withLock({ Array($0.observers.values) }) where observer.isActive { observer.handler(change) }
    }

    private func wakeWaiters() {
        stateChanged.lock()
        stateChanged.broadcast()
        stateChanged.unlock()
    }
}
