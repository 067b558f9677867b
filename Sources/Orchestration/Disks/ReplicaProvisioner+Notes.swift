import Foundation
import Glibc
import Libvirt
import Platform

/// What happens to a guest's disks on this host, noted for whoever wants to overwrite them later. Each note is on disk when the call returns.
extension ReplicaProvisioner {
    /// (primary) The guest runs on these disks, and a protection begins. Kept for the moment when it has gone over, of which the service
    /// may learn only after a restart.
    func notePrimary(_ plan: DiskPlan) throws {
        try records.change(uuid) { record in
            for entry in plan.entries {
                guard case .replicate(let request) = entry.decision else { continue }
                let old = record.disks[entry.target]
                let origin = old?.path == request.sourcePath ? old?.origin : nil
                record.disks[entry.target] = .init(path: request.sourcePath, format: entry.format, capacityBytes: request.capacityBytes, pool: request.pool,
                                                   origin: origin ?? .formerPrimary, status: .inUse)
            }
        }
    }

    /// (old primary, its QEMU gone) The guest went over at that time, in nanoseconds since 1970: what it ran on here may become its
    /// replica. A disk that was written to more than two seconds later ran on, and is stale. nil: not compared.
    func noteFormerPrimary(wentOverAt moment: Int64?) throws {
        try records.change(uuid) { record in
            for (target, disk) in record.disks where disk.status == .inUse {
                var disk = disk
                disk.identity = FileIdentity(path: disk.path)
                disk.status = .replica
                // Two clocks, and the last writes of a QEMU that was dying, are not that far apart.
                if let moment, let modified = disk.identity?.modified, modified > moment + 2_000_000_000 {
                    disk.status = .stale
                    disk.reason = "it was written to at \(FileIdentity.text(modified)), and the guest had gone over at \(FileIdentity.text(moment))"
                }
                record.disks[target] = disk
            }
        }
    }

    /// Something ran on the disks here that must not be lost silently.
    func noteStale(_ reason: String) throws {
        try records.change(uuid) { record in
            for target in record.disks.keys {
                record.disks[target]?.status = .stale
                record.disks[target]?.reason = reason
            }
        }
    }

    /// (shadow) The guest is about to run on its replicas: they are its disks from now on. Before it runs.
    func noteInUse() throws {
        try records.change(uuid) { record in
            for (target, disk) in record.disks where disk.status == .replica {
                record.disks[target]?.status = .inUse
                record.disks[target]?.identity = nil
            }
        }
    }

    /// (shadow) Nobody writes to the replicas any more, in good order: what writes to them from now on is somebody else.
    func noteSettled() throws {
        try records.change(uuid) { record in
            for (target, disk) in record.disks where disk.status == .replica {
                record.disks[target]?.identity = FileIdentity(path: disk.path)
            }
        }
    }

    /// Forgets what is known; the volumes stay.
    func remove() { records.remove(uuid) }

    /// Deletes the replicas that were created for this guest and are not its disks now. Returns what an administrator should know.
    func deleteVolumes() throws -> [String] {
        guard let record = try records.read(uuid) else { return [] }
        let connection = try connect()
        let users = try VolumeUsers(connection, except: uuid)
        let isActive = (try? connection.lookup(uuid: uuid).isActive()) == true
        var remarks: [String] = []
        for (target, disk) in record.disks.sorted(by: { $0.key < $1.key }) {
            if disk.status == .inUse || isActive {
                remarks.append("\(disk.path) on \(host) stays: the guest runs on it")
            } else if disk.origin != .created {
                remarks.append("\(disk.path) on \(host) stays: the guest ran on it before it went over, and it was not created as a replica")
            } else if let user = users.user(of: disk.path) {
                remarks.append("\(disk.path) on \(host) stays: domain \(user) uses it")
            } else {
                try delete(disk, connection)
                Log.info("\(domain): deleted volume \(disk.path), the replica of disk \(target)")
                try records.change(uuid) { $0.disks[target] = nil }
            }
        }
        if try records.read(uuid)?.disks.isEmpty == true { remove() }
        return remarks
    }

    func delete(_ disk: ReplicaRecord.Disk, _ connection: Connection) throws {
        if let name = disk.pool, let pool = try? connection.storagePool(name: name), try !pool.isActive() { try pool.start() }
        if let volume = try existing(.noStorageVolume, { try connection.storageVolume(path: disk.path) }) { return try volume.delete() }
        guard unlink(disk.path) == 0 || errno == ENOENT else { throw SystemError("unlink", disk.path) }
    }
}
