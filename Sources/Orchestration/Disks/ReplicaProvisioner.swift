import ControlProtocol
import Foundation
import FoundationXML
import Glibc
import Libvirt
import Platform

/// Finds or makes, on the shadow's host, a volume for each disk of one guest, and never takes one that may hold something else:
///
///     what lies there                                        without --discard-stale    with it
///     nothing                                                created                    created
///     a replica of ours, or the guest's former disk here     taken                      taken
///     one of these that was written to since, or is stale    refused                    taken
///     something nobody here knows                            refused                    deleted, created
///     a disk of another domain of this host, or what one     refused                    refused
///     is based on, or an unknown one on shared storage
struct ReplicaProvisioner: Sendable {
    let uuid: String
    /// The guest's name, for messages and for names of volumes.
    let domain: String
    let host: String
    let records: ReplicaRecordStore
    let connect: @Sendable () throws -> Connection

    init(uuid: String, domain: String, environment: HostEnvironment) {
        self.init(uuid: uuid, domain: domain, host: environment.hostName, stateDirectory: environment.configuration.stateDirectory, connect: environment.connect)
    }

    init(uuid: String, domain: String, host: String, stateDirectory: String, connect: @escaping @Sendable () throws -> Connection) {
        self.uuid = uuid.lowercased()
        self.domain = domain
        self.host = host
        records = ReplicaRecordStore(stateDirectory: stateDirectory)
        self.connect = connect
    }

    /// How far a caller may go.
    struct Terms: Sendable {
        /// The pool for all replicas; nil: each disk's own.
        var pool: String?
        var discardStale = false
        /// An inactive pool may be started: not by `doctor`.
        var startsPools = true
        /// The domain that is active here is a shadow of the guest, which makes way for a new one.
        var replacesShadow = false
    }

    struct Provisioned: Sendable {
        var layout = ReplicaLayout()
        /// Targets whose volume is new and therefore reads as zeros.
        var fresh: Set<String> = []
        var warnings: [String] = []
    }

    /// Provides a raw volume for each disk. Nothing is touched before all of them are known to be possible; after an error later on, what
    /// was made is ours by the record, and found the next time.
    ///
    /// - Throws: `ControlFailure` that names the volume and what to do, `LibvirtError`, `SystemError`.
    func provision(_ requests: [ReplicaRequest], media: [MediaRequest] = [], _ terms: Terms) throws -> Provisioned {
        var result = Provisioned()
        try provide(media, &result)
        guard !requests.isEmpty else { return result }
        let assessments = try assess(requests, terms)
        for assessment in assessments {
            let made = try carryOut(assessment)
            let target = assessment.request.target
            try records.change(uuid) { record in
                if let old = record.disks[target], old.path != made.disk.path { result.warnings.append(leftBehind(old, target)) }
                record.disks[target] = made.disk
            }
            result.layout.replicas[target] = made.disk.path
            result.layout.visibleBytes[target] = made.visibleBytes
            if made.isFresh { result.fresh.insert(target) }
        }
        return result
    }

    private func leftBehind(_ disk: ReplicaRecord.Disk, _ target: String) -> String {
        let why = disk.format == "raw" ? "" : "\(disk.format), which a replica cannot be; it is "
        return "\(disk.path) on \(host), until now known as a copy of disk \(target), is \(why)not used any more: delete it when nobody needs it"
    }

    private func provide(_ media: [MediaRequest], _ result: inout Provisioned) throws {
        for finding in media.compactMap(missing) {
            guard finding.finding.verdict != .failed else { throw ControlFailure(finding.finding.detail, advice: finding.finding.advice) }
            result.layout.emptied.append(finding.target)
            result.warnings.append(finding.finding.detail)
        }
    }

    /// What this host lacks of what is not copied; nil when it is there.
    func missing(_ medium: MediaRequest) -> (target: String, finding: Finding)? {
        guard access(medium.path, F_OK) != 0 else { return nil }
        let check = "disk-\(medium.target)"
        switch medium.kind {
        case .removable:
            return (medium.target, Finding(check, .warning, "\(host) lacks \(medium.path): drive \(medium.target) of the shadow is empty", advice: "Copy it there, or eject it here"))
        case .readOnlyDisk:
            return (medium.target, Finding(check, .failed, "\(host) lacks \(medium.path), which disk \(medium.target) reads", advice: "Copy it there: a read-only disk is not replicated and cannot be empty"))
        case .shared:
            return (medium.target, Finding(check, .failed, "\(host) lacks \(medium.path), the shared storage of disk \(medium.target)", advice: "Make it reachable there under the same path"))
        }
    }

    // MARK: Assessing

    /// What would be done for one disk.
    struct Assessment {
        enum Action {
            case create(StoragePool, PoolDescription)
            /// It is at that path, inside a pool or not.
            case take(String, StorageVolume?)
            case replace(StorageVolume, StoragePool, PoolDescription)
        }
        var request: ReplicaRequest
        /// The volume's name, when one is made.
        var name: String
        var action: Action
        var known: ReplicaRecord.Disk?
        var discardsStale: Bool
    }

    /// What a peer may ask for: sums of sizes stay far from overflowing.
    private static let mostDisks = 1000
    private static let mostBytes: UInt64 = 1 << 50

    func assess(_ requests: [ReplicaRequest], _ terms: Terms) throws -> [Assessment] {
        guard requests.count <= Self.mostDisks, requests.allSatisfy({ $0.capacityBytes > 0 && $0.capacityBytes <= Self.mostBytes && $0.allocationBytes <= Self.mostBytes }) else {
            throw ControlFailure("The request for replicas of \(domain) names sizes that no disk has")
        }
        let connection = try connect()
        if !terms.replacesShadow, (try? connection.lookup(uuid: uuid).isActive()) == true {
            throw ControlFailure("Domain \(domain) is active on \(host): its disks there cannot be replicas")
        }
        let record = try records.read(uuid)
        let users = try VolumeUsers(connection, except: uuid)
        var taken: Set<String> = []
        return try requests.map { request in
            let assessment = try assess(request, terms, record?.disks[request.target], users, &taken, connection)
            if case .take(let path, _) = assessment.action, !taken.insert(path).inserted {
                throw ControlFailure("\(path) on \(host) cannot be the replica of two disks")
            }
            return assessment
        }
    }

    private func assess(_ request: ReplicaRequest, _ terms: Terms, _ known: ReplicaRecord.Disk?, _ users: VolumeUsers, _ taken: inout Set<String>,
                        _ connection: Connection) throws -> Assessment {
        func assessment(_ action: Assessment.Action, _ name: String, _ known: ReplicaRecord.Disk?) -> Assessment {
            Assessment(request: request, name: name, action: action, known: known, discardsStale: terms.discardStale)
        }
        // What this host knows of comes before what the primary proposes: names may differ on the two.
        if let known, known.format == "raw", terms.pool == nil || terms.pool == known.pool {
            if let pool = known.pool { _ = try usablePool(pool, request, terms, connection) }
            if access(known.path, F_OK) == 0 {
                try judge(known.path, known, users, terms)
                return assessment(.take(known.path, try? connection.storageVolume(path: known.path)), request.volume, known)
            }
        }
        let (pool, description) = try self.pool(request, terms, connection)
        // Disks of several pools may have one name, and come into one pool.
        let name = taken.insert("\(pool.name)/\(request.volume)").inserted ? request.volume : "\(domain)-\(request.target).raw"
        guard let volume = try volume(name, pool, description) else { return assessment(.create(pool, description), name, nil) }
        let path = try volume.path()
        let ours = known?.path == path ? known : nil
        try judge(path, ours, users, terms)
        if ours?.format == "raw" { return assessment(.take(path, volume), name, ours) }
        if let overlay = try VolumeUsers.overlay(of: path, in: pool) {
            throw ControlFailure("Volume \(path) on \(host) is what volume \(overlay) is based on", advice: "Move it away, or name another pool with --pool")
        }
        return assessment(.replace(volume, pool, description), name, nil)
    }

    /// Throws unless what lies at `path` may be overwritten.
    private func judge(_ path: String, _ known: ReplicaRecord.Disk?, _ users: VolumeUsers, _ terms: Terms) throws {
        if let user = users.user(of: path) {
            throw ControlFailure("Volume \(path) on \(host) belongs to domain \(user) there", advice: "Name another pool with --pool")
        }
        guard let known, known.format == "raw" else {
            if let how = SharedStorage.name(of: path) {
                throw ControlFailure("Volume \(path) on \(host) is on shared storage (\(how)) and not known as a replica: another host may be using it",
                                     advice: "Move it away, or name another pool with --pool")
            }
            guard terms.discardStale else {
                throw ControlFailure("Volume \(path) exists on \(host), and nothing there knows it as a replica of \(domain)",
                                     advice: "Move it away, or let it be overwritten with --discard-stale: what is in it is lost")
            }
            return
        }
        guard !terms.discardStale, let reason = Self.doubt(known) else { return }
        throw ControlFailure("Volume \(path) on \(host) may hold what exists nowhere else: \(reason)",
                             advice: "Look at it if you need to, then let it be overwritten with --discard-stale")
    }

    /// Why a volume that was ours may not be any more.
    private static func doubt(_ known: ReplicaRecord.Disk) -> String? {
        switch known.status {
        case .stale: return known.reason ?? "it is stale"
        case .inUse: return "the guest ran on it here, and nobody saw it go"
        case .replica: break
        }
        guard let identity = known.identity else { return nil }
        guard let now = FileIdentity(path: known.path) else { return "it is no file any more" }
        return identity.difference(from: now)
    }

    // MARK: Pools and volumes

    private func pool(_ request: ReplicaRequest, _ terms: Terms, _ connection: Connection) throws -> (StoragePool, PoolDescription) {
        if let name = terms.pool ?? request.pool { return try usablePool(name, request, terms, connection) }
        let folder = (request.sourcePath as NSString).deletingLastPathComponent
        guard let pool = try existing(.noStoragePool, { try connection.storagePool(targetPath: folder) }) else {
            throw ControlFailure("Disk \(request.target) (\(request.sourcePath)) is in no storage pool, so \(host) cannot tell where its replica belongs",
                                 advice: "Name a pool with --pool (\(host) has \(names(connection)))")
        }
        return try usablePool(pool.name, request, terms, connection)
    }

    private func names(_ connection: Connection) -> String {
        let names = ((try? connection.storagePools()) ?? []).map(\.name).sorted()
        return names.isEmpty ? "none: define one with `virsh pool-define-as`" : names.joined(separator: ", ")
    }

    private func usablePool(_ name: String, _ request: ReplicaRequest, _ terms: Terms, _ connection: Connection) throws -> (StoragePool, PoolDescription) {
        guard let pool = try existing(.noStoragePool, { try connection.storagePool(name: name) }) else {
            throw ControlFailure("\(host) has no storage pool \(name) for the replica of disk \(request.target)",
                                 advice: "Define it there, or name another with --pool (\(host) has \(names(connection)))")
        }
        if try !pool.isActive() {
            guard terms.startsPools else { throw InactivePool(name: name) }
            try pool.start()
            try pool.refresh()
        }
        guard let description = PoolDescription(try pool.xml()) else { throw ControlFailure("The description of storage pool \(name) on \(host) cannot be read") }
        guard description.isUsable else {
            throw ControlFailure("Storage pool \(name) on \(host) is of type \(description.type), in which no replica can be made",
                                 advice: "Name one of type \(PoolDescription.usableTypes.sorted().joined(separator: ", ")) with --pool")
        }
        return (pool, description)
    }

    /// `doctor` changes nothing, so it cannot look into such a pool.
    struct InactivePool: Error { var name: String }

    /// Nil when there is none. Libvirt knows a pool's volumes as of its last refresh, which takes long in a large pool: only when the
    /// folder disagrees.
    private func volume(_ name: String, _ pool: StoragePool, _ description: PoolDescription) throws -> StorageVolume? {
        func find() throws -> StorageVolume? { try existing(.noStorageVolume) { try pool.volume(name: name) } }
        let found = try find()
        guard description.hasFiles, let folder = description.targetPath else { return found }
        guard (found != nil) != (access("\(folder)/\(name)", F_OK) == 0) else { return found }
        try pool.refresh()
        return try find()
    }

    // MARK: Carrying out

    private struct Made {
        var disk: ReplicaRecord.Disk
        var isFresh: Bool
        var visibleBytes: UInt64?
    }

    private func carryOut(_ assessment: Assessment) throws -> Made {
        switch assessment.action {
        case .create(let pool, let description):
            return try create(assessment, pool, description)
        case .replace(let volume, let pool, let description):
            Log.warning("\(domain): deleting volume \(volume.key), as --discard-stale allows")
            try volume.delete()
            return try create(assessment, pool, description)
        case .take(let path, let volume):
            return try take(assessment, path, volume)
        }
    }

    private func create(_ assessment: Assessment, _ pool: StoragePool, _ description: PoolDescription) throws -> Made {
        let request = assessment.request
        let volume = try pool.createVolume(xml: Self.volumeXML(name: assessment.name, capacity: request.capacityBytes, description))
        let path = try volume.path()
        let size = try Self.size(of: path)
        guard size >= request.capacityBytes else {
            try? volume.delete()
            throw ControlFailure("Volume \(path) on \(host) came out with \(size) bytes, disk \(request.target) has \(request.capacityBytes)")
        }
        Log.info("\(domain): created volume \(path) for the replica of disk \(request.target)")
        return made(request, path, pool: pool.name, origin: .created, size: size, isFresh: description.hasFiles)
    }

    static func volumeXML(name: String, capacity: UInt64, _ pool: PoolDescription) -> String {
        let volume = XMLElement(name: "volume")
        volume.add("name").stringValue = name
        for (element, bytes) in [("capacity", capacity), ("allocation", pool.allocation(capacity: capacity))] {
            let size = volume.add(element)
            size.set("unit", "bytes")
            size.stringValue = "\(bytes)"
        }
        // Devices have no format of their own.
        if pool.hasFiles { volume.add("target").add("format").set("type", "raw") }
        return volume.xmlString
    }

    private func take(_ assessment: Assessment, _ path: String, _ volume: StorageVolume?) throws -> Made {
        let request = assessment.request
        let origin = assessment.known?.origin ?? .formerPrimary
        let pool = try? volume?.pool()
        var size = try Self.size(of: path)
        if size < request.capacityBytes {
            try grow(path, volume, to: request.capacityBytes)
            size = try Self.size(of: path)
        } else if size > request.capacityBytes, !ReplicaLayout.isDevice(path) {
            if origin == .created, let volume, let pool, let description = PoolDescription(try pool.xml()) {
                try volume.delete()
                var again = assessment
                again.name = volume.name
                return try create(again, pool, description)
            }
            guard assessment.discardsStale else {
                throw ControlFailure("Volume \(path) on \(host) has \(size) bytes, disk \(request.target) only \(request.capacityBytes)",
                                     advice: "Let it be cut off with --discard-stale, or move it away")
            }
            guard truncate(path, off_t(request.capacityBytes)) == 0 else { throw SystemError("truncate", path) }
            size = request.capacityBytes
        }
        guard size >= request.capacityBytes else {
            throw ControlFailure("Volume \(path) on \(host) has \(size) bytes, disk \(request.target) \(request.capacityBytes), and it does not grow", advice: "Move it away")
        }
        return made(request, path, pool: pool?.name ?? assessment.known?.pool, origin: origin, size: size, isFresh: false)
    }

    private func grow(_ path: String, _ volume: StorageVolume?, to bytes: UInt64) throws {
        if let volume {
            try volume.resize(capacity: bytes)
        } else if truncate(path, off_t(bytes)) != 0 {
            throw SystemError("truncate", path)
        }
    }

    private func made(_ request: ReplicaRequest, _ path: String, pool: String?, origin: ReplicaRecord.Origin, size: UInt64, isFresh: Bool) -> Made {
        let disk = ReplicaRecord.Disk(path: path, capacityBytes: request.capacityBytes, pool: pool, origin: origin, status: .replica,
                                      identity: FileIdentity(path: path, withTime: false))
        return Made(disk: disk, isFresh: isFresh, visibleBytes: size > request.capacityBytes ? request.capacityBytes : nil)
    }

    /// Of a file or device.
    static func size(of path: String) throws -> UInt64 {
        let file = try Descriptor(checking: open(path, O_RDONLY | O_CLOEXEC), "open", path)
        let end = lseek(file.raw, 0, SEEK_END)
        guard end >= 0 else { throw SystemError("lseek", path) }
        return UInt64(end)
    }
}

/// What `body` finds; nil when libvirt says that there is none of that kind.
func existing<R>(_ kind: LibvirtError.Kind, _ body: () throws -> R) throws -> R? {
    do { return try body() } catch let error as LibvirtError where error.kind == kind { return nil }
}
