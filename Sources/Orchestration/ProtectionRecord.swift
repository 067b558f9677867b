import ControlProtocol
import Foundation
import Platform
import Replication

/// What a service must remember of a protection across its own death: one small file a domain, replaced whole.
struct ProtectionRecord: Codable, Sendable {
    enum Phase: String, Codable, Sendable {
        /// (primary) Protected, or about to be again.
        case protecting
        /// (primary) The order to run went out, or was about to: whether the guest may run here is for the peer to say.
        case committing
        /// (primary) The guest runs at the peer; the copy here is being removed.
        case removing
        /// (primary) The guest runs at the peer.
        case handedOver
        /// (shadow) Waiting.
        case shadowing
        /// (shadow) Ordered to run: from here on the domain here is the guest.
        case activated
        /// (shadow) It was seen running.
        case running
    }

    var schema = 1
    var uuid: String
    var domain: String
    var role: Role
    var phase: Phase
    /// (primary) The host of the shadow that messages go to, and its session; (shadow) the primary's.
    var peer: String
    var session: UUID
    var intervalMs: Double
    var withoutDisks: Bool
    /// (primary) Migration parameters as they were before we changed them.
    var savedParameters: [String: UInt64]
    /// (primary) The disk under the guard job, and its throw-away file.
    var guardDisk: String?
    var guardFile: String?
    // Of disks; records of a release without them lack these.
    /// (primary) The peer's pool for all replicas, when not each disk's own.
    var pool: String?
    /// (primary) Replicas may overwrite what is not known to be a replica. Taken back once they are provisioned: it was said of what
    /// lay there at that time.
    var discardStale: Bool?
    /// (primary) Limit of the disks' first copy, bytes per second.
    var diskRateBytesPerSecond: UInt64?
    /// (primary) What a failover does when disks are on shared storage.
    var onFailure: OnFailure?
    /// (primary) Targets on shared storage: memory must not be set back against them.
    var sharedDisks: [String]?
    // Of the engine; records of a release with one engine lack these.
    var chosenEngine: Engine?
    var engineReason: String?

    var engine: Engine { chosenEngine ?? .continuous }
    /// (primary) Nothing is left of it once the guest has ended.
    var isGhost: Bool?

    // Of several shadows; records of a release with one lack these.
    /// (primary) All shadows.
    var shadows: [ShadowEntry]?
    /// (shadow) What it knows of the others.
    var family: ShadowFamily?

    /// (shadow) Its domain, for a service that finds it here.
    var waiting: WaitingDomain?

    /// (primary) The session by which the guest came here, for a former primary that was away then.
    var cameBy: UUID?

    var entries: [ShadowEntry] { shadows ?? [ShadowEntry(peer: peer, session: session, multiple: 1)] }

    /// (primary) As it would be asked for anew.
    var request: ProtectRequest {
        var request = ProtectRequest(intervalMs: intervalMs, withoutDisks: withoutDisks)
        request.pool = pool
        request.diskRateBytesPerSecond = diskRateBytesPerSecond
        request.onFailure = onFailure ?? .leave
        request.engine = engine == .periodic ? .periodic : .continuous
        request.isGhost = isGhost == true
        return request
    }

    /// (shadow) The domain's persistent definition, for when its primary's host cannot tell it any more.
    var carried: CarriedDefinition?

    /// Takes up what the administrator asked for.
    mutating func apply(_ request: ProtectRequest) {
        pool = request.pool
        discardStale = request.discardStale ? true : nil
        diskRateBytesPerSecond = request.diskRateBytesPerSecond
        onFailure = request.onFailure == .leave ? nil : request.onFailure
        isGhost = request.isGhost ? true : nil
    }
}

/// How a guest is to be protected, as `protect` was told.
public struct ProtectRequest: Codable, Sendable, Equatable {
    /// Milliseconds between two epochs; nil: as the configuration has it.
    public var intervalMs: Double?
    public var withoutDisks = false
    /// The peer's pool for all replicas; nil: for each disk the pool of the same name as here.
    public var pool: String?
    public var discardStale = false
    public var diskRateBytesPerSecond: UInt64?
    public var onFailure = OnFailure.leave
    public var engine = EngineChoice.auto
    /// Nothing is left of it once the guest has ended.
    public var isGhost = false

    public init(intervalMs: Double? = nil, withoutDisks: Bool = false) {
        self.intervalMs = intervalMs
        self.withoutDisks = withoutDisks
    }

    /// What came over the control socket.
    public init(_ request: ControlRequest) {
        self.init(intervalMs: request.intervalMs, withoutDisks: request.withoutDisks ?? false)
        pool = request.pool
        discardStale = request.discardStale ?? false
        diskRateBytesPerSecond = request.diskRateBytesPerSecond
        onFailure = request.onFailure ?? .leave
        engine = request.engine ?? .auto
        isGhost = request.ghost ?? false
    }
}

/// The folder of records, usually `/var/lib/shadow-virt`.
public struct RecordStore: Sendable {
    let directory: String

    public init(directory: String) { self.directory = directory }

    /// The folder, made when missing: readable for root only, because a record names hosts and guests.
    public func prepare() throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o711])
    }

    private func path(_ uuid: String) -> String { "\(directory)/\(uuid).json" }

    func write(_ record: ProtectionRecord) throws { try DurableFile.write(json: record, to: path(record.uuid)) }

    func remove(_ uuid: String) { DurableFile.remove(path(uuid)) }

    /// Whether what is here of the domain is a shadow that waits.
    func holdsShadow(_ uuid: String) -> Bool {
        guard let data = FileManager.default.contents(atPath: path(uuid.lowercased())) else { return false }
        return (try? JSONDecoder().decode(ProtectionRecord.self, from: data))?.phase == .shadowing
    }

    /// Every record that can be read; one that cannot is reported and left where it is.
    func load() -> [ProtectionRecord] { DurableFile.readAll(ProtectionRecord.self, in: directory, kind: "protection record") }
}
