import ControlProtocol
import Foundation
import Platform
import Transport

/// What one service asks another.
public struct PeerRequest: Codable, Sendable {
    public enum Verb: String, Codable, Sendable {
        /// Make a shadow: create the domain paused, start its worker.
        case prepare
        /// Remove a shadow that never ran.
        case discard
        /// Load the last committed epoch into the shadow's QEMU; it stays paused.
        case load
        /// Let a loaded shadow run. From the moment this is sent the primary must not run any more.
        case run
        /// Boot the shadow's guest cold: its primary is dead, and its memory must not be set back against disks that both hosts share.
        case restart
        /// Where a session stands on that side.
        case query
        /// Whether a domain runs on that host, whatever its role.
        case domainState
        /// Stop the domain there for good: its shadow is about to take over.
        case stopPrimary
        /// The persistent definition has changed: the one to keep when the guest goes over.
        case carry
        /// Who the guest's other shadows are has changed.
        case family
        /// Where the shadow of that domain stands, whatever its session: another shadow of it asks.
        case sibling
        /// May the asking host, which holds a shadow, make it the guest? From then on its primary orders no other to; it takes the question back.
        case claim, unclaim
        /// Facts for `doctor`.
        case facts
        /// A live migration of a domain without a shadow is to come: make volumes for its disks.
        case receive
        /// It should have come: set its autostart, say how it went.
        case received
        /// It did not come: remove what was made for it.
        case abandon
        /// The asking host is being drained: make the shadow that it holds elsewhere.
        case leave
        /// The asking host is drained no more: bring the guest back, or tell how far that is.
        case sendBack
        /// Whether a guest, not its shadow, runs there.
        case holds
        /// What was measured there last.
        case telemetry
        /// Whether a host is trusted.
        case trust
        /// That host's hardware, as its BMC sees it.
        case health
        /// The asking host takes shadows again: it has just begun, or is drained no more.
        case available
    }
    public var verb: Verb
    public var session: UUID?
    public var uuid: String?
    public var domain: String?
    /// The asking host's name.
    public var host: String
    /// `prepare`: the shadow's XML. `run`: the persistent definition, when there was one.
    public var xml: String?
    public var intervalMs: Double?
    public var memoryBytes: UInt64?
    public var autostart: Bool?
    /// `prepare`, `facts`: the disks to make replicas of, and what else the guest's disks need there.
    public var disks: [ReplicaRequest]?
    public var media: [MediaRequest]?
    /// `prepare`: it has disks on storage that both hosts share, a network's included, which no path tells of.
    public var hasSharedDisks: Bool?
    /// `prepare`, `facts`: the pool for all replicas, instead of one of the same name for each disk.
    public var pool: String?
    /// `prepare`, `facts`: replicas may overwrite volumes that are not known to be replicas.
    public var discardStale: Bool?
    /// `discard`: the replicas go, too, as far as they were created for the guest.
    public var deleteReplica: Bool?
    /// `prepare`, `carry`: the persistent definition, in case that this host cannot tell it when the guest goes over.
    var carried: CarriedDefinition?
    /// `prepare`: the variables of the guest's firmware.
    var nvram: NVRAMFile?
    /// `facts`: what the guest needs besides.
    public var needs: DefinitionNeeds?
    /// `prepare`: what an administrator may have done with a guest on shared storage.
    public var onFailure: OnFailure?
    /// `prepare`: how its epochs are captured, for the shadow's status.
    public var engine: String?
    /// `prepare`, `run`, `family`: the guest's shadows.
    public var family: ShadowFamily?
    /// `telemetry`: an answer without content, for its round trip.
    public var isPing: Bool?
    /// `telemetry`: the asking host's last look at its guests whose shadows are there.
    var rows: [MirroredRow]?
    /// `trust`: what about.
    var trust: TrustCall?

    public init(_ verb: Verb, host: String, session: UUID? = nil, uuid: String? = nil, domain: String? = nil, xml: String? = nil,
                intervalMs: Double? = nil, memoryBytes: UInt64? = nil, autostart: Bool? = nil, disks: [ReplicaRequest]? = nil,
                media: [MediaRequest]? = nil, pool: String? = nil, discardStale: Bool? = nil, deleteReplica: Bool? = nil, onFailure: OnFailure? = nil) {
        self.verb = verb
        self.host = host
        self.session = session
        self.uuid = uuid
        self.domain = domain
        self.xml = xml
        self.intervalMs = intervalMs
        self.memoryBytes = memoryBytes
        self.autostart = autostart
        self.disks = disks
        self.media = media
        self.pool = pool
        self.discardStale = discardStale
        self.deleteReplica = deleteReplica
        self.onFailure = onFailure
    }
}

/// Where a session stands on the shadow's side.
public enum ShadowPhase: String, Codable, Sendable {
    /// Nothing is known of it: it never began, or was discarded.
    case unknown
    case receiving
    /// The guest's state is in QEMU, which is paused; whether it will run is the primary's to say.
    case loaded
    case running
    /// It could not be brought up and never ran.
    case failed
}

public struct HostFacts: Codable, Sendable {
    public var libvirtVersion: String
    public var hypervisorVersion: String
    public var freeMemoryBytes: UInt64
    public var machines: [String]
    public var cpuVerdict: String?
    public var hasKVM: Bool
    /// What was found about the disks that were asked about.
    public var disks: [Finding]?
    /// What was found about the needs that were asked about.
    public var definition: [Finding]?
    /// Absent: a release that knows nothing of placement.
    public var placement: PlacementFacts?
}

public struct PeerResponse: Codable, Sendable {
    public var failure: ControlFailure?
    public var phase: ShadowPhase?
    public var epoch: UInt64?
    /// `load`, `run`: how long it took there, milliseconds.
    public var milliseconds: Double?
    /// `domainState`: libvirt's word for it (`running`, `paused`, `shut off`), or `absent`. `leave`: the host that the shadow goes to.
    /// `sendBack`: what it is at, for a person.
    public var state: String?
    /// `domainState`: the domain executes guest code, or would without another decision. `holds`: it runs there. `sendBack`: it is still on its way.
    public var isLive: Bool?
    public var facts: HostFacts?
    /// `prepare`, `receive`: the replicas' paths by target.
    public var replicas: [String: String]?
    /// `receive`: sizes that the guest sees, of replicas that are larger; drives whose medium is not there.
    public var visibleBytes: [String: UInt64]?
    public var emptied: [String]?
    /// `received`: how it went, in libvirt's figures.
    public var migration: MigrationFigures?
    /// `prepare`, `discard`, `receive`, `received`, `abandon`: what an administrator should know.
    public var warnings: [String]?
    /// `query`: its guest came to run there, whether it does now or not. Absent: it never did, as far as is known there.
    var hasRun: Bool?
    /// `sibling`.
    public var sibling: SiblingState?
    /// `telemetry`: absent when nothing is measured there.
    var telemetry: PeerTelemetry?
    var health: HealthReport?
    /// `trust`: bundles that lie there, or a part of one.
    var bundles: BundleList?
    var bundlePart: BundlePart?

    public init(failure: ControlFailure? = nil, phase: ShadowPhase? = nil, epoch: UInt64? = nil, milliseconds: Double? = nil,
                state: String? = nil, isLive: Bool? = nil, facts: HostFacts? = nil, replicas: [String: String]? = nil, warnings: [String]? = nil,
                visibleBytes: [String: UInt64]? = nil, emptied: [String]? = nil, hasRun: Bool? = nil) {
        self.failure = failure
        self.phase = phase
        self.epoch = epoch
        self.milliseconds = milliseconds
        self.state = state
        self.isLive = isLive
        self.facts = facts
        self.replicas = replicas
        self.warnings = warnings
        self.visibleBytes = visibleBytes
        self.emptied = emptied
        self.hasRun = hasRun
    }
}

/// A peer could not be asked; `mayHaveArrived` tells whether it may have acted on the request all the same.
public struct PeerUnreachable: Error, CustomStringConvertible, Sendable {
    public let peer: String
    public let reason: String
    public let mayHaveArrived: Bool
    public var description: String { "Cannot reach \(peer): \(reason)" }
}

/// Asks one peer, over a connection that stays open between questions. One question at a time.
public final class PeerClient: @unchecked Sendable {
    public let name: String
    private let endpoint: Endpoint
    private let secret: SharedSecret
    private let host: String
    private let timeoutMs: Double
    private let lock = NSLock()
    private var channel: MessageChannel?

    public init(name: String, endpoint: Endpoint, secret: SharedSecret, host: String, timeoutMs: Double) {
        self.name = name
        self.endpoint = endpoint
        self.secret = secret
        self.host = host
        self.timeoutMs = timeoutMs
    }

    /// Sends a request and waits for its answer; `timeoutMs` covers the peer's work.
    public func ask(_ request: PeerRequest, timeoutMs limit: Double? = nil) throws -> PeerResponse {
        lock.lock()
        defer { lock.unlock() }
        let deadline = MonotonicTime.now.adding(milliseconds: limit ?? timeoutMs)
        // A connection that idled may be dead; asking again over a fresh one is safe only while nothing was sent.
        if let open = channel, !isUsable(open.raw) { channel = nil }
        let open: MessageChannel
        do {
            open = try channel ?? connect()
        } catch {
            throw PeerUnreachable(peer: "\(name) (\(endpoint))", reason: "\(error)", mayHaveArrived: false)
        }
        channel = open
        do {
            try open.send(request, deadline: deadline)
            let response = try open.receive(PeerResponse.self, deadline: deadline)
            if let failure = response.failure { throw failure }
            return response
        } catch let failure as ControlFailure {
            throw failure
        } catch {
            channel = nil
            throw PeerUnreachable(peer: "\(name) (\(endpoint))", reason: "\(error)", mayHaveArrived: true)
        }
    }

    public func close() {
        lock.withLock { channel = nil }
    }

    /// Between questions nothing may come: readable means closed.
    private func isUsable(_ fd: Int32) -> Bool {
        guard let ready = try? wait(fd, for: [.readable, .hangup], until: .now) else { return false }
        return ready.isEmpty
    }

    private func connect() throws -> MessageChannel {
        let deadline = MonotonicTime.now.adding(milliseconds: timeoutMs)
        let socket = try TCP.connect(endpoint, deadline: deadline)
        try Handshake.initiate(socket.raw, secret: secret, name: host, peer: name, purpose: .control,
                               session: UUID(uuid: (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)), deadline: deadline)
        return MessageChannel(socket)
    }
}
