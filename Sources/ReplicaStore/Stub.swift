import Foundation
public struct DiskExtent: Sendable { public enum Kind: UInt8, Sendable { case data, zero, trim }
 public var disk: Int; public var kind: Kind; public var offset: UInt64; public var length: Int
 public init(disk: Int, kind: Kind, offset: UInt64, length: Int) { self.disk = disk; self.kind = kind; self.offset = offset; self.length = length } }
public struct ChunkHash: Equatable, Sendable { public var low: UInt64; public var high: UInt64; public init(low: UInt64, high: UInt64) { self.low = low; self.high = high }
 public static let unknown = ChunkHash(low: 0, high: 0) }
public struct ChunkHasher: Sendable { public init?(seed: Data) {} ; public func hash(_ b: UnsafeRawBufferPointer) -> ChunkHash { .unknown }; public func hashOfZeroes(_ n: Int) -> ChunkHash { .unknown } }
public final class ChunkTable { public static let chunkBytes = 65536; public var seed = Data()
 public func rebuild(bytesPerSecond: Int?, progress: (UInt64) -> Bool) throws {}
 public func withHashes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R { try body(UnsafeRawBufferPointer(start: nil, count: 0)) } }
public final class ReplicaSet { public struct Disk: Codable, Sendable { public var index: Int; public var path: String; public var byteCount: UInt64 }
 public enum State: Equatable { case empty, syncing, consistent(epoch: UInt64) }
 public var state: State { .empty }
 public init(folder: String, session: UUID, disks: [Disk], journalLimitBytes: Int, committed: UInt64?) throws {}
 public func beginSync() throws {}
 public func endSync(epoch: UInt64) throws {}
 public func writeNow(_ e: DiskExtent, _ b: UnsafeRawPointer?) throws {}
 public func stage(_ e: DiskExtent, _ b: UnsafeRawPointer?) {}
 public func prepare(epoch: UInt64) throws {}
 public func apply(epoch: UInt64) throws {}
 public func discardStaged() {}
 public func close(clean: Bool) throws {}
 public func handOver() throws {}
 public func table(_ i: Int) -> ChunkTable { ChunkTable() } }
