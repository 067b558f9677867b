import Glibc
import Platform

/// What can go wrong with a guest's replicas. A system call's failure that none of these describes is a `SystemError`.
public enum ReplicaError: Error, Equatable, CustomStringConvertible, Sendable {
    /// Somebody, as a rule a QEMU, holds one of QEMU's locks on the image.
    case imageInUse(path: String, permission: String)
    /// Another worker has this domain's journal.
    case journalInUse(path: String)
    case notAnImage(path: String)
    case wrongSize(path: String, bytes: UInt64, expected: UInt64)
    case unknownDisk(DiskExtent)
    case outOfBounds(DiskExtent, capacity: UInt64)
    case missingData(DiskExtent)
    case tooLong(DiskExtent)
    /// An epoch needs more journal than there may be.
    case journalFull(epoch: UInt64, needed: Int, limit: Int, ceiling: Int)
    case noSpace(path: String, needed: Int)
    case damagedJournal(path: String, offset: Int, what: String)
    case damagedState(path: String, what: String)
    case shortRead(path: String, offset: UInt64, missing: Int)
    /// The stored records speak of other disks than the session's.
    case disksDiffer(folder: String)
    case wrongState(call: String, state: String)
    case epochOutOfOrder(epoch: UInt64, after: UInt64)
    /// A write or a flush of the replica failed earlier: only opening it again, which repeats from the journal, makes it whole.
    case failedBefore(cause: String)

    public var description: String {
        switch self {
        case .imageInUse(let path, let permission):
            "\(path) is in use: another program holds QEMU's \"\(permission)\" lock on it. Stop the guest or job that has it open "
                + "(fuser \(path) names it)"
        case .journalInUse(let path): "\(path) is in use: another worker keeps this domain's replicas"
        case .notAnImage(let path): "\(path) is neither a file nor a block device"
        case .wrongSize(let path, let bytes, let expected):
            "\(path) has \(bytes) bytes, the guest's disk \(expected). Make the volume again with the disk's size"
        case .unknownDisk(let extent): "There is no disk \(extent.disk) for a \(extent)"
        case .outOfBounds(let extent, let capacity): "A \(extent) lies outside it: the disk has \(capacity) bytes"
        case .missingData(let extent): "A \(extent) came without its data"
        case .tooLong(let extent): "A \(extent) is longer than the limit of \(DiskExtent.mostDataBytes) bytes"
        case .journalFull(let epoch, let needed, let limit, let ceiling):
            "The disk writes of epoch \(epoch) need \(needed) bytes of journal, the limit is \(limit) and no epoch may take more than "
                + "\(ceiling). Raise the journal's limit or shorten the interval between epochs"
        case .noSpace(let path, let needed): "No space left for \(needed) bytes of \(path). Free space on its file system"
        case .damagedJournal(let path, let offset, let what):
            "\(path) is damaged at offset \(offset): \(what). Remove it and copy the disks again"
        case .damagedState(let path, let what): "\(path) is damaged: \(what). Remove it and copy the disks again"
        case .shortRead(let path, let offset, let missing): "\(path) ends \(missing) bytes too early for a read at \(offset)"
        case .disksDiffer(let folder): "The records in \(folder) are of other disks than this session's. Copy the disks again"
        case .wrongState(let call, let state): "\(call) is out of order: the replica is \(state)"
        case .epochOutOfOrder(let epoch, let after): "Epoch \(epoch) cannot follow epoch \(after)"
        case .failedBefore(let cause): "The replica failed earlier and has to be opened again (\(cause))"
        }
    }
}

/// The error of a call that writes: a full disk, a quota and a size limit are one thing to an administrator.
func writeFailure(_ call: String, _ path: String, needed: Int, code: Int32 = errno) -> any Error {
    switch code {
    case ENOSPC, EDQUOT, EFBIG: ReplicaError.noSpace(path: path, needed: needed)
    default: SystemError(call, path, code: code)
    }
}

func isNoSpace(_ error: any Error) -> Bool {
    guard let error = error as? ReplicaError, case .noSpace = error else { return false }
    return true
}
