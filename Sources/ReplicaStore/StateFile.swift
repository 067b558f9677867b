import Foundation
import Glibc
import Platform

/// What has to be known after a power loss, in `state`, JSON: to whom the replicas belong, whether they are an epoch's, and which of
/// the journal's records count. Replaced whole: written beside, flushed, renamed, the folder flushed.
struct StoredState: Codable, Equatable {
    enum Phase: String, Codable {
        case empty, syncing, consistent
    }

    var version = 1
    var session: UUID
    var phase: Phase
    /// The epoch that the flushed replicas are at, with `consistent`. The journal's records of `generation` come after it.
    var epoch: UInt64
    var generation: UInt64
    /// Of the journal's checksums.
    var secret: Data
    var disks: [ReplicaSet.Disk]

    static func path(_ folder: String) -> String { folder + "/state" }

    /// More than this no state of ours has.
    private static let mostBytes = 1 << 20

    static func load(folder: String) throws -> StoredState? {
        let path = path(folder)
        let raw = open(path, O_RDONLY | O_CLOEXEC)
        if raw < 0, errno == ENOENT { return nil }
        let fd = try Descriptor(checking: raw, "open", path)
        let count = try FileAccess.size(fd.raw, path: path)
        guard count <= mostBytes else { throw ReplicaError.damagedState(path: path, what: "it has \(count) bytes") }
        var bytes = [UInt8](repeating: 0, count: count)
        try bytes.withUnsafeMutableBytes { buffer in
            guard let base = buffer.baseAddress else { return }
            try FileAccess.read(fd.raw, base, buffer.count, at: 0, path: path)
        }
        return try decode(Data(bytes), path: path)
    }

    static func decode(_ data: Data, path: String) throws -> StoredState {
        let stored: StoredState
        do {
            stored = try JSONDecoder().decode(StoredState.self, from: data)
        } catch {
            throw ReplicaError.damagedState(path: path, what: "it cannot be read as version 1")
        }
        guard stored.version == 1 else { throw ReplicaError.damagedState(path: path, what: "its version is \(stored.version), not 1") }
        guard KeyedHash(secret: Array(stored.secret)) != nil else {
            throw ReplicaError.damagedState(path: path, what: "its secret has \(stored.secret.count) bytes")
        }
        return stored
    }

    /// `renamed` is called once the new state may be what a recovery finds.
    func save(folder: String, renamed: () -> Void) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        let data = try encoder.encode(self)
        try data.withUnsafeBytes { bytes in
            try FileAccess.replace(Self.path(folder), folder: folder, pieces: [bytes], renamed: renamed)
        }
    }
}
