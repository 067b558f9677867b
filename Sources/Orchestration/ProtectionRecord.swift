import ControlProtocol
import Foundation
import Glibc
import Platform

/// What a service must remember of a protection across its own death: one small file a domain, replaced whole.
struct ProtectionRecord: Codable, Sendable {
    enum Phase: String, Codable, Sendable {
        /// (primary) Protected, or about to be again.
        case protecting
        /// (primary) The order to run went out, or was about to: whether the guest may run here is for the peer to say.
        case committing
        /// (primary) The guest runs at the peer; the copy here is being removed.
        case removing
        /// (primary) The guest runs at the peer.
        case handedOver
        /// (shadow) Waiting.
        case shadowing
        /// (shadow) Ordered to run: from here on the domain here is the guest.
        case activated
        /// (shadow) It was seen running.
        case running
    }

    var schema = 1
    var uuid: String
    var domain: String
    var role: Role
    var phase: Phase
    var peer: String
    var session: UUID
    var intervalMs: Double
    var withoutDisks: Bool
    /// (primary) Migration parameters as they were before we changed them.
    var savedParameters: [String: UInt64]
    /// (primary) The disk under the guard job, and its throw-away file.
    var guardDisk: String?
    var guardFile: String?
}

/// The folder of records, usually `/var/lib/shadow-virt`.
public struct RecordStore: Sendable {
    let directory: String

    public init(directory: String) { self.directory = directory }

    /// The folder, made when missing: readable for root only, because a record names hosts and guests.
    public func prepare() throws {
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o711])
    }

    private func path(_ uuid: String) -> String { "\(directory)/\(uuid).json" }

    /// Temporary file, fsync, rename, fsync of the folder: after a crash at any step the old or the new record is there, whole.
    func write(_ record: ProtectionRecord) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        let bytes = Array(try encoder.encode(record))
        let temporary = path(record.uuid) + ".new"
        let file = try Descriptor(checking: open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600), "open", temporary)
        var done = 0
        while done < bytes.count {
            let n = bytes.withUnsafeBytes { buffer in
                retryingInterrupts { Glibc.write(file.raw, buffer.baseAddress.map { $0 + done }, buffer.count - done) }
            }
            guard n > 0 else { throw SystemError("write", temporary) }
            done += n
        }
        guard fsync(file.raw) == 0 else { throw SystemError("fsync", temporary) }
        guard rename(temporary, path(record.uuid)) == 0 else { throw SystemError("rename", temporary) }
        try syncDirectory()
    }

    func remove(_ uuid: String) {
        unlink(path(uuid))
        try? syncDirectory()
    }

    private func syncDirectory() throws {
        let folder = try Descriptor(checking: open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", directory)
        guard fsync(folder.raw) == 0 else { throw SystemError("fsync", directory) }
    }

    /// Every record that can be read; one that cannot is reported and left where it is.
    func load() -> [ProtectionRecord] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return names.filter { $0.hasSuffix(".json") }.sorted().compactMap { name in
            let file = "\(directory)/\(name)"
            do {
                return try JSONDecoder().decode(ProtectionRecord.self, from: Data(contentsOf: URL(fileURLWithPath: file)))
            } catch {
                Log.error("Cannot read the protection record \(file): \(error). Look at it, then remove it")
                return nil
            }
        }
    }
}
