import Foundation
import Libvirt

/// Gathering, from libvirt and this host, what a plan is made from.
extension DiskPlan {
    /// The plan for a running domain. `definition` is its live XML with everything that libvirt shows: a migratable one lacks the block
    /// jobs. Jobs whose other end lies below one of `ownFolders` are ours, left by an earlier attempt.
    ///
    /// - Throws: `LibvirtError` when the domain is gone; what cannot be found out about a single disk is in its decision.
    static func make(_ domain: Domain, _ definition: DomainDefinition, ownFolders: [String]) throws -> DiskPlan {
        var facts: [String: Facts] = [:]
        for disk in definition.disks where !disk.isEmpty {
            facts[disk.target] = try gather(disk, domain, ownFolders)
        }
        return DiskPlan(definition, facts: facts)
    }

    private static func gather(_ disk: DomainDefinition.Disk, _ domain: Domain, _ ownFolders: [String]) throws -> Facts {
        var facts = Facts()
        locate(disk, domain.connection, &facts)
        if let path = facts.path, facts.sharedBy == nil { facts.sharedBy = SharedStorage.name(of: path) }
        if let size = try? domain.blockInfo(disk: disk.target) {
            facts.capacityBytes = size.capacity
            facts.allocationBytes = min(size.capacity, allocated(facts.path) ?? size.allocation)
        }
        let isOurs = disk.mirror.map { mirror in ownFolders.contains { mirror.path.hasPrefix($0 + "/") } } ?? false
        // Pulls and commits have no other end.
        let job = try domain.blockJobInfo(disk: disk.target)
        facts.hasForeignJob = !isOurs && (disk.mirror != nil || job != nil)
        return facts
    }

    /// Libvirt knows the highest offset that was written to since the guest started, which may be none; the file system knows better.
    private static func allocated(_ path: String?) -> UInt64? {
        var info = stat()
        guard let path, stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFREG else { return nil }
        return UInt64(clamping: info.st_blocks) * 512
    }

    private static func locate(_ disk: DomainDefinition.Disk, _ connection: Connection, _ facts: inout Facts) {
        let volume: StorageVolume?
        if disk.kind == .volume {
            volume = try? connection.storagePool(name: disk.pool).volume(name: disk.volume)
            facts.path = try? volume?.path()
            if let kind = try? volume?.info().kind, kind != .file, kind != .block { facts.sharedBy = "\(kind) volume" }
        } else {
            guard disk.source.hasPrefix("/") else { return }
            facts.path = disk.source
            volume = try? connection.storageVolume(path: disk.source)
        }
        let pool = if let volume { try? volume.pool() } else { poolOfFolder(disk.source, connection) }
        guard let pool else { return }
        facts.pool = pool.name
        facts.volume = volume?.name ?? (disk.source as NSString).lastPathComponent
        if facts.sharedBy == nil, let type = PoolDescription(try? pool.xml())?.type, PoolDescription.networkTypes.contains(type) { facts.sharedBy = type }
    }

    /// Libvirt knows a pool's volumes as of its last refresh, and an image may be younger.
    private static func poolOfFolder(_ path: String, _ connection: Connection) -> StoragePool? {
        try? connection.storagePool(targetPath: (path as NSString).deletingLastPathComponent)
    }

    /// Compares the disks' sizes with what they were when the plan was made. One quick question to libvirt a disk.
    func sizeChanges(_ domain: Domain) throws -> [SizeChange] {
        try sizeChanges(Dictionary(uniqueKeysWithValues: replicas.map { ($0.target, try domain.blockInfo(disk: $0.target).capacity) }))
    }
}
