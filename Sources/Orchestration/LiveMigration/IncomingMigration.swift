import ControlProtocol
import Foundation
import Libvirt
import Platform

/// What libvirt says of a migration once it is over, at the target.
public struct MigrationFigures: Codable, Sendable, Equatable {
    public var downtimeMs: Double?
    public var memoryBytes: UInt64
    public var bandwidthBytesPerSecond: UInt64
    public var passes: UInt64?

    init(_ job: JobInfo) {
        downtimeMs = job.downtimeMilliseconds.map { Double($0) }
        memoryBytes = job.memoryProcessed ?? 0
        bandwidthBytesPerSecond = job.memoryBytesPerSecond ?? 0
        passes = job.memoryIteration
    }
}

/// The target's side of another host's live migration: volumes for the guest's disks, and what is left to do afterwards.
struct IncomingMigration {
    let uuid: String
    let name: String
    let session: UUID
    let environment: HostEnvironment
    private let provisioner: ReplicaProvisioner
    private let store: MigrationStore

    init(_ request: PeerRequest, environment: HostEnvironment) throws {
        guard let uuid = request.uuid?.lowercased(), let name = request.domain, let session = request.session else { throw ControlFailure("The request names no domain") }
        self.uuid = uuid
        self.name = name
        self.session = session
        self.environment = environment
        provisioner = ReplicaProvisioner(uuid: uuid, domain: name, environment: environment)
        store = MigrationStore(stateDirectory: environment.configuration.stateDirectory)
    }

    static func alreadyThere(_ name: String, _ host: String, isActive: Bool, _ state: String) -> ControlFailure {
        isActive
            ? ControlFailure("Domain \(name) is active on \(host) already (\(state))", advice: "Find out which copy is the right one, then `virsh destroy` the other")
            : ControlFailure("Domain \(name) is defined on \(host) already (\(state))", advice: "Its definition would be overwritten: `virsh undefine \(name)` there when nobody needs it")
    }

    /// Provides a volume for each disk. From now on they count as the guest's own, so that nobody takes them for replicas, whatever happens.
    func receive(_ request: PeerRequest) throws -> PeerResponse {
        try refuseWhatIsThere()
        // Of an attempt whose host never said how it ended. The guest is not here, so it stayed there.
        if let earlier = store.incoming(uuid) { _ = try provisioner.abandon(earlier) }
        let before = try provisioner.records.read(uuid)?.disks ?? [:]
        do {
            let provisioned = try provisioner.provision(request.disks ?? [], media: request.media ?? [], .init(pool: request.pool, discardStale: request.discardStale ?? false))
            try store.write(try incoming(since: before, targets: provisioned.layout.replicas.keys.sorted()), uuid)
            try provisioner.noteInUse(Array(provisioned.layout.replicas.keys))
            return PeerResponse(replicas: provisioned.layout.replicas, warnings: provisioned.warnings, visibleBytes: provisioned.layout.visibleBytes,
                                emptied: provisioned.layout.emptied)
        } catch {
            // What was made for the disks before the one that failed is of no use to anybody.
            _ = try? provisioner.abandon(incoming(since: before, targets: []))
            store.removeIncoming(uuid)
            throw error
        }
    }

    private func incoming(since before: [String: ReplicaRecord.Disk], targets: [String]) throws -> IncomingRecord {
        let made = (try provisioner.records.read(uuid)?.disks ?? [:]).filter { $0.value.origin == .created && before[$0.key]?.path != $0.value.path }.map(\.key)
        return IncomingRecord(session: session, domain: name, made: made.sorted(), taken: targets.filter { !made.contains($0) })
    }

    private func refuseWhatIsThere() throws {
        let connection = try environment.connect()
        if let domain = try existing(.noDomain, { try connection.lookup(uuid: uuid) }) {
            let (state, reason) = try domain.state()
            throw Self.alreadyThere(name, environment.hostName, isActive: try domain.isActive(), state.describe(reason: reason))
        }
        if let other = try existing(.noDomain, { try connection.lookup(name: name) }) {
            throw ControlFailure("\(environment.hostName) has another domain of the name \(name) (\(other.uuid))", advice: "Rename one of them with `virsh domrename`")
        }
    }

    /// The guest is here, or should be: sees to its autostart, and tells what became of it.
    func received(autostart: Bool) throws -> PeerResponse {
        guard let domain = try existing(.noDomain, { try environment.connect().lookup(uuid: uuid) }) else { return PeerResponse(state: "absent", isLive: false) }
        let (state, reason) = try domain.state()
        var response = PeerResponse(state: state.describe(reason: reason), isLive: try domain.isActive())
        var warnings: [String] = []
        if autostart {
            do { try domain.setAutostart(true) } catch { warnings.append("Autostart was not set on \(environment.hostName): \(error)") }
        }
        if state == .paused { warnings.append("\(name) is suspended on \(environment.hostName) (\(state.describe(reason: reason)))") }
        response.warnings = warnings
        if response.isLive == true { store.removeIncoming(uuid) }
        response.migration = figures(domain)
        return response
    }

    /// Kept for whoever asks virsh. After a post-copy they come a moment later than the guest.
    private func figures(_ domain: Domain) -> MigrationFigures? {
        for _ in 0..<10 {
            if let job = try? domain.jobInfo(flags: [.completed, .keepCompleted]), job.operation == .migrationIn { return MigrationFigures(job) }
            usleep(50_000)
        }
        return nil
    }

    /// The guest stays where it was: the volumes that were made for it go, and the others are replicas again.
    func abandon() throws -> PeerResponse {
        if let domain = try existing(.noDomain, { try environment.connect().lookup(uuid: uuid) }), try domain.isActive() {
            // What it runs on, or is about to, stays. Until the source's half has ended it waits paused.
            let (state, reason) = try domain.state()
            return PeerResponse(phase: state == .running ? .running : .receiving, state: state.describe(reason: reason), isLive: true)
        }
        guard let incoming = store.incoming(uuid), incoming.session == session else { return PeerResponse(state: "absent", isLive: false) }
        let remarks = try provisioner.abandon(incoming)
        store.removeIncoming(uuid)
        return PeerResponse(state: "absent", isLive: false, warnings: remarks)
    }
}

extension ReplicaProvisioner {
    /// (target) The guest is about to run on them. Before it runs.
    func noteInUse(_ targets: [String]) throws {
        try records.change(uuid) { record in
            for target in targets {
                record.disks[target]?.status = .inUse
                record.disks[target]?.identity = nil
            }
        }
    }

    /// (target) A migration came to nothing. Returns what an administrator should know.
    func abandon(_ incoming: IncomingRecord) throws -> [String] {
        guard let record = try records.read(uuid) else { return [] }
        let connection = try connect()
        let users = try VolumeUsers(connection, except: uuid)
        var remarks: [String] = []
        for target in incoming.made {
            guard let disk = record.disks[target], disk.origin == .created else { continue }
            if let user = users.user(of: disk.path) {
                remarks.append("\(disk.path) on \(host) stays: domain \(user) uses it")
                continue
            }
            try delete(disk, connection)
            Log.info("\(domain): deleted volume \(disk.path), made for a migration that did not succeed")
            try records.change(uuid) { $0.disks[target] = nil }
        }
        // Overwritten in part: good for nothing but to be overwritten again.
        try records.change(uuid) { record in
            for target in incoming.taken where record.disks[target]?.status == .inUse { record.disks[target]?.status = .replica }
        }
        if try records.read(uuid)?.disks.isEmpty == true { remove() }
        return remarks
    }

    /// (source) The guest has left, its QEMU is gone: what it ran on here may become its replica.
    func noteWentOver(_ sources: [String: ReplicaRecord.Disk]) throws {
        guard !sources.isEmpty else { return }
        try records.change(uuid) { record in
            for (target, source) in sources {
                var disk = source
                if let old = record.disks[target], old.path == disk.path { disk.origin = old.origin }
                disk.status = .replica
                disk.identity = FileIdentity(path: disk.path)
                record.disks[target] = disk
            }
        }
    }
}
