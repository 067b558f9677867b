import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform
import Replication
import Transport

/// What every protection on this host shares.
public struct HostEnvironment: Sendable {
    /// As it stands now: the service may read its file again. All copies of this value share it.
    private let current: Guarded<ServiceConfiguration>
    public let secretBytes: Data?
    public let records: RecordStore
    /// What happened here, for `events`, and how often, for `status` and /metrics.
    public let events = EventJournal()
    let tallies = Tallies()
    /// Hosts that are not trusted.
    public let marks: HostMarks
    let taken: TakenSessions
    /// The current connection to this host's libvirt; throws while there is none.
    public let connect: @Sendable () throws -> Connection

    public init(configuration: ServiceConfiguration, secretBytes: Data?, connect: @escaping @Sendable () throws -> Connection) {
        current = Guarded(configuration)
        self.secretBytes = secretBytes
        records = RecordStore(directory: configuration.stateDirectory)
        marks = HostMarks(stateDirectory: configuration.stateDirectory)
        taken = TakenSessions(stateDirectory: configuration.stateDirectory)
        self.connect = connect
    }

    public var configuration: ServiceConfiguration { current.read { $0 } }
    /// What is asked for after this gets the new one; whoever took a peer or an interval from the old one keeps it.
    public func replace(configuration: ServiceConfiguration) { current.change { $0 = configuration } }

    public var hostName: String { configuration.hostName }
    /// Whether `host` is the name of this one.
    func isThisHost(_ host: String) -> Bool { HostName.isSame(host, hostName) }
    /// What lies here is ours: the other ends of our block jobs.
    var ownFolders: [String] { [configuration.runtimeDirectory, configuration.stateDirectory] }
    public var secret: SharedSecret { secretBytes.map { SharedSecret($0) } ?? .none }

    public func peer(_ name: String) throws -> Peer {
        if let peer = configuration.peer(named: name) { return peer }
        guard !isThisHost(name) else { throw ControlFailure("\(name) is this host", advice: "Name another one: `peers` in \(configuration.file) lists them") }
        let known = configuration.peers.map(\.name)
        throw ControlFailure("Unknown host \(name)", advice: known.isEmpty
            ? "List the other hosts under `peers` in \(configuration.file)"
            : "The configuration lists \(known.joined(separator: ", ")); add it to `peers` in \(configuration.file)")
    }

    public func client(of peer: Peer) -> PeerClient {
        PeerClient(name: peer.name, endpoint: Endpoint(address: peer.address.host, port: peer.address.port), secret: secret, host: hostName,
                   timeoutMs: Double(configuration.peerTimeoutMs))
    }

    /// A folder of a domain's own below the runtime folder, in which QEMU (`owner`) may make and reach sockets.
    func socketDirectory(_ uuid: String, owner: (user: uid_t, group: gid_t)) throws -> String {
        let path = "\(configuration.runtimeDirectory)/\(uuid)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        guard chown(path, owner.user, owner.group) == 0 else { throw SystemError("chown", path) }
        return path
    }
}

/// The state of one protection as `status` shows it, shared between the protection's thread and whoever asks.
final class StatusBoard: @unchecked Sendable {
    private let board: Guarded<(state: ProtectionState, reason: String, since: String)>
    private let label: String
    /// Tells the journal.
    let reporter: ProtectionReporter?

    /// `label`: what the log calls it; empty: nothing is logged.
    init(_ state: ProtectionState, label: String, reporter: ProtectionReporter? = nil) {
        board = Guarded((state, "", Timestamp.now))
        self.label = label
        self.reporter = reporter
    }

    var state: ProtectionState { board.read { $0.state } }
    var current: (state: ProtectionState, reason: String, since: String) { board.read { $0 } }

    /// Sets and logs the state; a repetition is neither.
    func set(_ state: ProtectionState, _ reason: String = "", cause: StateCause? = nil) {
        let before: ProtectionState? = board.change { board in
            guard board.state != state || board.reason != reason else { return nil }
            defer { board = (state, reason, board.state == state ? board.since : Timestamp.now) }
            return board.state
        }
        guard let before else { return }
        reporter?.changed(from: before, to: state, reason, cause)
        guard !label.isEmpty else { return }
        let text = "\(label): \(state.rawValue)" + (reason.isEmpty ? "" : ": \(reason)")
        switch state {
        case .degraded: Log.warning(text)
        case .inDoubt: Log.error(text)
        default: Log.info(text)
        }
    }

    /// Waits until the state is one of `states`.
    func wait(for states: Set<ProtectionState>, until deadline: MonotonicTime?) -> ProtectionState? {
        board.wait(until: deadline) { states.contains($0.state) ? $0.state : nil }
    }
}
