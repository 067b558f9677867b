import Glibc
import Platform

public enum NBDServerEvent: Sendable {
    /// A client has passed the handshake and has the export.
    case connected(NBDConnectionID, export: String)
    /// A client that had an export is gone: by its own DISC or by `stop` without an error.
    case disconnected(NBDConnectionID, export: String, error: NBDProtocolError?)
    /// A client has not passed the handshake, with the reason unless it only looked.
    case turnedAway(NBDConnectionID, error: NBDProtocolError?)
    /// There were `NBDServer.maximumConnections` already.
    case tooManyConnections
    /// accept(2) fails; it is tried again.
    case cannotAccept(ChannelError)
}

/// An NBD server on a unix socket, a thread for each connection.
///
///     init (the socket is there, clients queue) --start--> serving --stop--> ended (the socket is gone)
public final class NBDServer: Sendable {
    public static let maximumConnections = 16

    private let core: ServerCore
    private let path: String

    /// Makes the socket at `path`, replacing an old one. `maximumPayload` is a power of two from 64 KiB to 32 MiB. `onEvent` is called
    /// on the threads of the connections.
    /// - Throws: `SystemError` when the socket cannot be made.
    public init(path: String, mode: mode_t, owner: (uid_t, gid_t)? = nil, exports: [any NBDExport], maximumPayload: Int = 1 << 20,
                limits: NBDLimits = NBDLimits(), onEvent: @escaping @Sendable (NBDServerEvent) -> Void = { _ in }) throws(SystemError) {
        self.path = path
        let listener = try UnixSocket.listen(path, mode: mode, backlog: Int32(NBDServer.maximumConnections))
        if let owner, lchown(path, owner.0, owner.1) != 0 {
            let error = SystemError("lchown", path)
            unlink(path)
            throw error
        }
        core = ServerCore(listener: listener, wake: try WakeUp(), exports: exports,
                          settings: Settings(limits, maximumPayload: maximumPayload), identity: FileIdentity(path), onEvent: onEvent)
    }

    deinit { stop() }

    /// Begins to take clients. Once.
    public func start() {
        let core = self.core
        core.state.change { $0.threads += 1 }
        startThread("nbd-accept") {
            core.acceptClients()
            core.state.change { $0.threads -= 1 }
        }
    }

    /// Ends all connections and waits for their threads, so not to be called on one of them. An export that blocks in `prepareWrite`
    /// has to be told to give up first. The second time it does nothing.
    public func stop() {
        let first = core.state.change { state -> Bool in
            defer { state.stopping = true }
            for socket in state.sockets.values { shutdown(socket, Int32(SHUT_RDWR)) }
            return !state.stopping
        }
        core.wake.signal()
        _ = core.state.wait(until: nil) { $0.threads == 0 ? true : nil }
        // Another server may have made its own socket there meanwhile.
        if first, let identity = core.identity, identity == FileIdentity(path) { unlink(path) }
    }

    /// Clients that are connected now, those in the handshake too.
    public var connectionCount: Int { core.state.read { $0.sockets.count } }

    /// Serves a socket that is connected already, on the calling thread, until the client goes.
    public static func serve(_ socket: consuming Descriptor, exports: [any NBDExport], maximumPayload: Int = 1 << 20,
                             limits: NBDLimits = NBDLimits()) throws(NBDProtocolError) {
        let connection = Connection(fd: socket.raw, wake: -1, id: NBDConnectionID(slot: 0, serial: 1), exports: exports,
                                    settings: Settings(limits, maximumPayload: maximumPayload), claims: ExportClaims())
        try connection.serve { _ in }
    }
}

/// Which file a path names.
private struct FileIdentity: Equatable {
    let device: dev_t
    let inode: ino_t

    init?(_ path: String) {
        var status = stat()
        guard lstat(path, &status) == 0 else { return nil }
        device = status.st_dev
        inode = status.st_ino
    }
}

/// What the threads share.
private final class ServerCore: Sendable {
    struct State {
        /// By slot.
        var sockets: [Int: Int32] = [:]
        var serial: UInt64 = 0
        var threads = 0
        var stopping = false
    }

    let state = Guarded(State())
    let listener: Descriptor
    let wake: WakeUp
    let exports: [any NBDExport]
    let settings: Settings
    let identity: FileIdentity?
    let onEvent: @Sendable (NBDServerEvent) -> Void
    let claims = ExportClaims()

    init(listener: consuming Descriptor, wake: WakeUp, exports: [any NBDExport], settings: Settings, identity: FileIdentity?,
         onEvent: @escaping @Sendable (NBDServerEvent) -> Void) {
        self.listener = listener
        self.wake = wake
        self.exports = exports
        self.settings = settings
        self.identity = identity
        self.onEvent = onEvent
    }

    func acceptClients() {
        while !state.read({ $0.stopping }) {
            do {
                guard let socket = try acceptConnection(listener.raw, wake: wake.raw, until: nil) else { continue }
                admit(socket)
            } catch {
                if case .interrupted = error { return }
                onEvent(.cannotAccept(error))
                // Out of descriptors, most likely. It passes, or it does not; not to burn a processor over it.
                usleep(200_000)
            }
        }
    }

    private func admit(_ socket: consuming Descriptor) {
        let fd = socket.raw
        let id = state.change { state -> NBDConnectionID? in
            guard !state.stopping, let slot = (0..<NBDServer.maximumConnections).first(where: { state.sockets[$0] == nil }) else { return nil }
            state.serial += 1
            state.sockets[slot] = fd
            state.threads += 1
            return NBDConnectionID(slot: slot, serial: state.serial)
        }
        guard let id else { return onEvent(.tooManyConnections) }
        let raw = socket.release()
        startThread("nbd-\(id.slot)") { [self] in
            serve(raw, id)
            // Out of the table before it is closed: `stop` must not shut down another file with this number.
            state.change { $0.sockets[id.slot] = nil }
            close(raw)
            state.change { $0.threads -= 1 }
        }
    }

    private func serve(_ fd: Int32, _ id: NBDConnectionID) {
        let connection = Connection(fd: fd, wake: wake.raw, id: id, exports: exports, settings: settings, claims: claims)
        var export: String?
        var failure: NBDProtocolError?
        do {
            try connection.serve { index in
                let name = exports[index].name
                export = name
                onEvent(.connected(id, export: name))
            }
        } catch {
            failure = state.read { $0.stopping } ? nil : error
        }
        if let export {
            onEvent(.disconnected(id, export: export, error: failure))
        } else {
            onEvent(.turnedAway(id, error: failure))
        }
    }
}

/// One client from the greeting to the end, on the calling thread.
struct Connection {
    let fd: Int32
    let wake: Int32
    let id: NBDConnectionID
    let exports: [any NBDExport]
    let settings: Settings
    let claims: ExportClaims

    /// `onExport` hears which export the client has got. Returns after ABORT or DISC.
    func serve(onExport: (Int) -> Void) throws(NBDProtocolError) {
        var channel = Channel(fd: fd, wake: wake, transferMilliseconds: settings.handshakeSeconds * 1000)
        var handshake = Handshake(exports: exports, settings: settings, claims: claims)
        defer { if let index = handshake.claimed { claims.release(index) } }
        guard let agreement = try handshake.run(&channel) else { return }
        onExport(agreement.exportIndex)
        channel.transferMilliseconds = settings.transferSeconds * 1000
        let export = exports[agreement.exportIndex]
        var transmission = Transmission(channel: channel, rules: RequestRules(export, agreement, settings), id: id)
        try transmission.run(export)
    }
}
