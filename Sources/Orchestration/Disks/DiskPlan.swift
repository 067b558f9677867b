import ControlProtocol
import Libvirt

/// What becomes of each of a domain's disks when it is protected. Pure: made from the definition and from facts gathered before.
struct DiskPlan: Sendable, Equatable {
    enum Decision: Sendable, Equatable {
        /// A writable disk of this host's own: part of the epochs.
        case replicate(ReplicaRequest)
        /// Not copied, because the guest does not change it; `isRemovable`: the shadow can do with an empty drive.
        case mustExist(path: String, isRemovable: Bool)
        /// Read-only and from the network: the same for both hosts.
        case reachable(String)
        /// Written by the guest on storage that goes on when the guest is set back: memory and disk would part.
        /// `path`: where it lies when it is a file or device.
        case shared(String, path: String?)
        case refused(String, advice: String)
        /// A drive without a medium.
        case empty
    }

    struct Entry: Sendable, Equatable {
        var target: String
        /// The source's format, for a copy of it to be judged by (`raw`, `qcow2`).
        var format: String
        var decision: Decision
        /// A floppy that the guest can write to, which nobody copies.
        var isWritableMedium = false
    }

    /// What the definition does not say about a disk.
    struct Facts: Sendable, Equatable {
        var capacityBytes: UInt64 = 0
        var allocationBytes: UInt64 = 0
        /// The source's path on this host, also for `<source pool= volume=>`; nil for network sources.
        var path: String?
        var pool: String?
        var volume: String?
        /// What the source is shared by ("NFS", "iSCSI"); nil: it is this host's own.
        var sharedBy: String?
        /// A block job that is not ours.
        var hasForeignJob = false
    }

    var entries: [Entry]

    static let formats: Set<String> = ["raw", "qcow2"]
    static let buses: Set<String> = ["virtio", "scsi", "sata", "ide", "usb"]

    /// `facts` by target; a disk without any counts as unreadable.
    init(_ definition: DomainDefinition, facts: [String: Facts]) {
        entries = definition.disks.map { disk in
            Entry(target: disk.target, format: disk.format, decision: Self.decide(disk, facts[disk.target], domain: definition.name),
                  isWritableMedium: disk.device == "floppy" && !disk.isReadOnly && !disk.isEmpty)
        }
    }

    /// Throws why the first disk that is refused is.
    func checkNoneIsRefused() throws {
        for case .refused(let reason, let advice) in entries.map(\.decision) { throw ControlFailure(reason, advice: advice) }
    }

    private static func decide(_ disk: DomainDefinition.Disk, _ facts: Facts?, domain: String) -> Decision {
        guard !disk.isEmpty else { return .empty }
        if disk.device == "cdrom" || disk.device == "floppy" || (disk.isReadOnly && disk.device == "disk") {
            if disk.kind == .network { return .reachable(disk.networkProtocol) }
            guard let path = facts?.path else {
                return .refused("Where disk \(disk.target) lies cannot be told", advice: "Give it a file or a device as its source")
            }
            return .mustExist(path: path, isRemovable: disk.device != "disk")
        }
        if let refusal = refusal(disk) { return refusal }
        if disk.isShareable { return .shared("<shareable/>", path: facts?.path) }
        if disk.kind == .network { return .shared(disk.networkProtocol, path: nil) }
        guard let facts, let path = facts.path else {
            return .refused("Where disk \(disk.target) lies cannot be told", advice: "Is its storage pool active? `virsh pool-list --all`")
        }
        if let sharedBy = facts.sharedBy { return .shared(sharedBy, path: path) }
        if facts.hasForeignJob {
            return .refused("Disk \(disk.target) of domain \(domain) has a block job already",
                            advice: "Wait for it or end it with `virsh blockjob \(domain) \(disk.target) --abort`")
        }
        guard formats.contains(disk.format) else {
            return .refused("Disk \(disk.target) has the format \(disk.format)", advice: "Convert it to raw or qcow2 with `qemu-img convert`")
        }
        guard facts.capacityBytes > 0 else {
            return .refused("The size of disk \(disk.target) cannot be told", advice: "`virsh domblkinfo \(domain) \(disk.target)` says why")
        }
        return .replicate(ReplicaRequest(target: disk.target, capacityBytes: facts.capacityBytes, allocationBytes: facts.allocationBytes, pool: facts.pool,
                                         volume: volumeName(disk, facts, domain: domain), sourcePath: path))
    }

    /// What no copy can be made of, whatever it lies on.
    private static func refusal(_ disk: DomainDefinition.Disk) -> Decision? {
        func refused(_ what: String, _ advice: String) -> Decision { .refused("Disk \(disk.target) \(what)", advice: advice) }
        if disk.device != "disk" { return refused("is passed through (device='\(disk.device)')", "Use device='disk'") }
        switch disk.kind {
        case .file, .block, .volume, .network: break
        case .directory: return refused("is a folder of its host", "Use an image file")
        case .other(let type): return refused("has type='\(type)', whose data does not pass through QEMU's block layer", "Use a file, a block device or a volume")
        }
        if disk.isTransient { return refused("is <transient/>", "Its changes are meant to be lost: make it an ordinary disk") }
        if disk.isEncrypted { return refused("is encrypted by QEMU", "Its replica would be plain: encrypt inside the guest, or below the pool on both hosts") }
        if !disk.bus.isEmpty, !buses.contains(disk.bus) { return refused("is on the \(disk.bus) bus", "Use virtio, SCSI, SATA, IDE or USB") }
        return nil
    }

    /// The source's own name in its pool, so that it is recognised; a replica is raw, whatever its source is.
    private static func volumeName(_ disk: DomainDefinition.Disk, _ facts: Facts, domain: String) -> String {
        guard let name = facts.volume ?? (disk.kind == .file ? facts.path.map(lastComponent) : nil) else { return "\(domain)-\(disk.target)" }
        guard disk.format != "raw" else { return name }
        let stem = name.hasSuffix(".\(disk.format)") ? String(name.dropLast(disk.format.count + 1)) : name
        return "\(stem).raw"
    }

    private static func lastComponent(_ path: String) -> String { path.split(separator: "/").last.map(String.init) ?? path }

    // MARK: What follows from it

    /// The disks that become part of the epochs, in the order of the definition.
    var replicas: [ReplicaRequest] {
        entries.compactMap { if case .replicate(let request) = $0.decision { request } else { nil } }
    }

    /// What the peer must have at the same path.
    var media: [MediaRequest] {
        entries.compactMap { entry in
            switch entry.decision {
            case .mustExist(let path, let isRemovable): MediaRequest(target: entry.target, path: path, kind: isRemovable ? .removable : .readOnlyDisk)
            case .shared(_, let path?): MediaRequest(target: entry.target, path: path, kind: .shared)
            default: nil
            }
        }
    }

    /// Targets on shared storage: with any of them a failover must not resume the guest's memory.
    var shared: [String] {
        entries.compactMap { if case .shared = $0.decision { $0.target } else { nil } }
    }

    /// Replicated disks whose size is not what it was: the guest was given more (`virsh blockresize`), and its replica must follow.
    func sizeChanges(_ current: [String: UInt64]) -> [SizeChange] {
        replicas.compactMap { replica in
            guard let bytes = current[replica.target], bytes != replica.capacityBytes else { return nil }
            return SizeChange(target: replica.target, was: replica.capacityBytes, now: bytes)
        }
    }

    struct SizeChange: Sendable, Equatable, CustomStringConvertible {
        var target: String
        var was: UInt64
        var now: UInt64
        var description: String { "Disk \(target) changed its size from \(was) to \(now) bytes" }
    }

    // MARK: Findings

    /// What `doctor` says about the disks on this side. `protect` refuses what is `failed`.
    func findings(domain: String, onFailure: OnFailure) -> [Finding] {
        var findings: [Finding] = []
        for entry in entries {
            switch entry.decision {
            case .refused(let reason, let advice):
                findings.append(Finding("disk-\(entry.target)", .failed, reason, advice: "\(advice). `--without-disks` protects its memory alone: after a failover the disk is whatever the other host has"))
            case .shared(let how, _) where onFailure == .restart:
                findings.append(Finding("disk-\(entry.target)", .warning, "Disk \(entry.target) is on shared storage (\(how)): after a failure the guest boots cold at the peer",
                                        advice: "`swap` moves it without loss"))
            case .shared(let how, _):
                findings.append(Finding("disk-\(entry.target)", .warning, "Disk \(entry.target) is on shared storage (\(how)): the guest's memory cannot be set back against a disk that went on, so a failover resumes nothing",
                                        advice: "`swap` works. `--on-failure restart` boots the guest cold at the peer once the primary is proved dead"))
            case .mustExist where entry.isWritableMedium:
                findings.append(Finding("disk-\(entry.target)", .warning, "Floppy \(entry.target) is writable, and what the guest writes to it is not replicated",
                                        advice: "Make it <readonly/>"))
            case .replicate, .mustExist, .reachable, .empty: break
            }
        }
        if !replicas.isEmpty { findings.append(Finding("disks", .ok, "In the epochs: \(replicas.map(\.target).joined(separator: ", "))")) }
        if replicas.isEmpty, shared.isEmpty, !findings.contains(where: { $0.verdict == .failed }) { findings.append(Finding("disks", .ok, "No writable disk")) }
        return findings
    }
}
