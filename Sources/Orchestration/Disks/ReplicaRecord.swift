import Foundation
import Glibc
import Platform

/// What this host knows of the volumes that are, or were, replicas of one guest's disks: the licence to overwrite them.
///
///                provision                        noteInUse                     noteFormerPrimary
///     (nothing) ----------> replica ------------------------------> inUse ------------------------> replica
///                              |  noteStale, written to meanwhile                                      |
///                              '-------------> stale <-------------------------------------------------'
///                                                '-- provision with --discard-stale --> replica
struct ReplicaRecord: Codable, Sendable, Equatable {
    enum Origin: String, Codable, Sendable {
        /// By us, for this guest: it may be deleted again.
        case created
        /// The disk that the guest ran on here before it went over. It is somebody else's file: overwritten, never deleted.
        case formerPrimary
    }

    enum Status: String, Codable, Sendable {
        case replica
        /// Something ran on it after the guest had gone over; `reason` says what.
        case stale
        /// The guest runs on it.
        case inUse
    }

    struct Disk: Codable, Sendable, Equatable {
        var path: String
        var format = "raw"
        var capacityBytes: UInt64
        /// The pool it lies in; nil when in none.
        var pool: String?
        var origin: Origin
        var status: Status
        var reason: String?
        /// What it looked like when it was last certain to hold what we think; nil while a replica is being written, and for devices.
        var identity: FileIdentity?
    }

    var schema = 1
    var uuid: String
    /// By target.
    var disks: [String: Disk] = [:]
}

/// Enough of a file to notice that somebody else wrote to it, or put another in its place.
struct FileIdentity: Codable, Sendable, Equatable {
    var inode: UInt64
    var sizeBytes: UInt64
    /// Nanoseconds since 1970; nil: it was being written to by ourselves.
    var modified: Int64?

    /// Nil for what is no plain file: a device's node says nothing about its content.
    init?(path: String, withTime: Bool = true) {
        var info = stat()
        guard stat(path, &info) == 0, info.st_mode & S_IFMT == S_IFREG else { return nil }
        inode = UInt64(info.st_ino)
        sizeBytes = UInt64(clamping: info.st_size)
        modified = withTime ? Int64(info.st_mtim.tv_sec) * 1_000_000_000 + Int64(info.st_mtim.tv_nsec) : nil
    }

    /// Why `now` cannot be the file that this was taken of, unchanged; nil when it can.
    func difference(from now: FileIdentity) -> String? {
        if inode != now.inode { return "it is another file than it was" }
        guard let modified, let time = now.modified else { return nil }
        if modified != time { return "it was written to at \(Self.text(time)), after \(Self.text(modified)), when it was last known" }
        return sizeBytes != now.sizeBytes ? "its size changed" : nil
    }

    static func text(_ nanoseconds: Int64) -> String {
        Timestamp.format(seconds: Int(nanoseconds / 1_000_000_000), milliseconds: Int(nanoseconds % 1_000_000_000) / 1_000_000)
    }
}

/// The records of all guests, below `STATE_DIRECTORY/replicas/UUID/`. One change at a time.
struct ReplicaRecordStore: Sendable {
    let stateDirectory: String
    private static let lock = MonotonicCondition()

    /// The folder for everything about one guest's replicas.
    func folder(_ uuid: String) -> String { "\(stateDirectory)/replicas/\(uuid.lowercased())" }
    private func path(_ uuid: String) -> String { "\(folder(uuid))/replicas.json" }
    /// The shadow worker's: the journal and what it knows of the replicas' content.
    func epochFolder(_ uuid: String) -> String { "\(folder(uuid))/epochs" }

    /// Nil when nothing is known. One that cannot be read is an error: to go on without would be to forget what must not be overwritten.
    func read(_ uuid: String) throws -> ReplicaRecord? {
        guard let data = FileManager.default.contents(atPath: path(uuid)) else {
            guard access(path(uuid), F_OK) != 0, errno == ENOENT else { throw SystemError("open", path(uuid)) }
            return nil
        }
        return try JSONDecoder().decode(ReplicaRecord.self, from: data)
    }

    /// Changes and stores the record; a body that throws changes nothing.
    @discardableResult
    func change<R>(_ uuid: String, _ body: (inout ReplicaRecord) throws -> R) throws -> R {
        try Self.lock.withLock {
            var record = try read(uuid) ?? ReplicaRecord(uuid: uuid.lowercased())
            let before = record
            let result = try body(&record)
            guard record != before else { return result }
            try FileManager.default.createDirectory(atPath: folder(uuid), withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try DurableFile.write(json: record, to: path(uuid))
            return result
        }
    }

    /// Forgets the guest's replicas. The volumes stay, and count as nobody's from then on.
    func remove(_ uuid: String) {
        Self.lock.withLock {
            DurableFile.remove(path(uuid))
            unlink(path(uuid) + DurableFile.temporarySuffix)
            try? FileManager.default.removeItem(atPath: epochFolder(uuid))
            rmdir(folder(uuid))
        }
    }
}
