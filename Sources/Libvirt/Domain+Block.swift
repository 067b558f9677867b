import CLibvirt

/// `virDomainBlockCopyFlags`.
public struct BlockCopyFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Only the top image, onto a destination with the same backing chain.
    public static let shallow = BlockCopyFlags(rawValue: VIR_DOMAIN_BLOCK_COPY_SHALLOW.rawValue)
    /// The destination exists and has the right size.
    public static let reuseExternal = BlockCopyFlags(rawValue: VIR_DOMAIN_BLOCK_COPY_REUSE_EXT.rawValue)
    /// The job need not survive a guest restart; needed for a persistent domain.
    public static let transientJob = BlockCopyFlags(rawValue: VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB.rawValue)
    /// Guest writes complete on both sides (QEMU's `write-blocking`); libvirt 8.0.
    public static let synchronousWrites = BlockCopyFlags(rawValue: VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES.rawValue)
}

/// `virDomainBlockJobAbortFlags`.
public struct BlockJobAbortFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Don't wait for the end.
    public static let async = BlockJobAbortFlags(rawValue: VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC.rawValue)
    /// Go over to the copy.
    public static let pivot = BlockJobAbortFlags(rawValue: VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT.rawValue)
}

/// `virDomainBlockJobType`.
public struct BlockJobType: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = BlockJobType(rawValue: 0)
    public static let pull = BlockJobType(rawValue: 1)
    public static let copy = BlockJobType(rawValue: 2)
    public static let commit = BlockJobType(rawValue: 3)
    public static let activeCommit = BlockJobType(rawValue: 4)
    public static let backup = BlockJobType(rawValue: 5)
    public static let names: [Int32: String] = [
        0: "unknown", 1: "pull", 2: "copy", 3: "commit", 4: "active commit", 5: "backup",
    ]
}

/// `virConnectDomainEventBlockJobStatus`.
public struct BlockJobStatus: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let completed = BlockJobStatus(rawValue: 0)
    public static let failed = BlockJobStatus(rawValue: 1)
    public static let canceled = BlockJobStatus(rawValue: 2)
    /// Both sides are equal, and stay so: it may be pivoted.
    public static let ready = BlockJobStatus(rawValue: 3)
    public static let names: [Int32: String] = [0: "completed", 1: "failed", 2: "canceled", 3: "ready"]
}

/// A running block job (`virDomainBlockJobInfo`).
public struct BlockJobInfo: Sendable, Hashable {
    public let type: BlockJobType
    /// 0: no limit.
    public let bandwidthBytesPerSecond: UInt64
    /// Progress, not bytes of anything: `current` runs from 0 to `end`. Equal does not yet mean that a copy is ready: right after the
    /// start both are 0, and a non-empty disk's `end` grows with what the guest writes.
    public let current: UInt64
    public let end: UInt64
}

/// Sizes of a disk in bytes (`virDomainBlockInfo`).
public struct BlockInfo: Sendable, Hashable {
    /// As the guest sees it.
    public let capacity: UInt64
    /// Highest offset that is allocated.
    public let allocation: UInt64
    /// Of the container: the file or the device.
    public let physical: UInt64
}

/// `disk` is a target such as `vda`, or a path of the source.
extension Domain {
    /// Starts a mirror of a disk onto `destinationXML`, a `<disk>` element (`virDomainBlockCopy`). Parameters: `bandwidth`, `granularity`,
    /// `buf-size` (VIR_DOMAIN_BLOCK_COPY_...).
    public func blockCopy(disk: String, destinationXML: String, parameters: TypedParameters = [:],
                          flags: BlockCopyFlags = []) throws(LibvirtError) {
        _ = try call("virDomainBlockCopy") { pointer in
            parameters.withC { ok(virDomainBlockCopy(pointer, disk, destinationXML, $0, $1, flags.rawValue)) }
        }
    }

    /// The disk's job; nil when it has none (`virDomainGetBlockJobInfo`).
    public func blockJobInfo(disk: String) throws(LibvirtError) -> BlockJobInfo? {
        let (found, info) = try call("virDomainGetBlockJobInfo") { pointer in
            var info = virDomainBlockJobInfo()
            return ok(virDomainGetBlockJobInfo(pointer, disk, &info, VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES.rawValue)).map { ($0, info) }
        }
        guard found > 0 else { return nil }
        return BlockJobInfo(type: BlockJobType(rawValue: info.type), bandwidthBytesPerSecond: UInt64(info.bandwidth), current: info.cur,
                            end: info.end)
    }

    /// Ends the disk's job (`virDomainBlockJobAbort`).
    public func blockJobAbort(disk: String, flags: BlockJobAbortFlags = []) throws(LibvirtError) {
        _ = try call("virDomainBlockJobAbort") { ok(virDomainBlockJobAbort($0, disk, flags.rawValue)) }
    }

    /// Limits the disk's job; 0 lifts the limit (`virDomainBlockJobSetSpeed`).
    public func setBlockJobSpeed(disk: String, bytesPerSecond: UInt64) throws(LibvirtError) {
        _ = try call("virDomainBlockJobSetSpeed") {
            ok(virDomainBlockJobSetSpeed($0, disk, UInt(clamping: bytesPerSecond), VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES.rawValue))
        }
    }

    /// `virDomainGetBlockInfo`.
    public func blockInfo(disk: String) throws(LibvirtError) -> BlockInfo {
        try call("virDomainGetBlockInfo") { pointer in
            var info = virDomainBlockInfo()
            guard virDomainGetBlockInfo(pointer, disk, &info, 0) == 0 else { return nil }
            return BlockInfo(capacity: info.capacity, allocation: info.allocation, physical: info.physical)
        }
    }
}
