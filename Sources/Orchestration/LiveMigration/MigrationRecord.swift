import ControlProtocol
import Foundation
import Glibc
import Platform

/// What the service must remember of a live migration while libvirt works on it: libvirt goes on when the service dies.
struct MigrationRecord: Codable, Sendable {
    var schema = 1
    /// Of this attempt: a late word about one must not meet the next.
    var session = UUID()
    var uuid: String
    var domain: String
    var peer: String
    var options: MigrationOptions
    var isPersistent: Bool
    var autostart: Bool
    /// The disks that the guest runs on here, by target.
    var sources: [String: ReplicaRecord.Disk]
    /// Paths of their copies at the peer.
    var copies: [String: String]
    /// QEMU's limit of the downtime before we changed it, milliseconds.
    var savedDowntimeMs: UInt64?
}

/// What the target's service must remember until the guest is there, or stays where it is.
struct IncomingRecord: Codable, Sendable, Equatable {
    var schema = 1
    var session: UUID
    var domain: String
    /// Disks whose volumes were made for this.
    var made: [String]
    /// Disks whose volumes were there.
    var taken: [String]
}

/// Migrations under way, one file each, and what earlier ones told of the network: below `STATE_DIRECTORY/migrations/`.
struct MigrationStore: Sendable {
    let folder: String

    init(stateDirectory: String) { folder = "\(stateDirectory)/migrations" }

    private func path(_ uuid: String) -> String { "\(folder)/\(uuid).json" }
    private var bandwidthPath: String { "\(folder)/bandwidth" }

    private func prepare() throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    }

    func write(_ record: MigrationRecord) throws {
        try prepare()
        try DurableFile.write(json: record, to: path(record.uuid))
    }

    func record(_ uuid: String) -> MigrationRecord? {
        FileManager.default.contents(atPath: path(uuid)).flatMap { try? JSONDecoder().decode(MigrationRecord.self, from: $0) }
    }

    func remove(_ uuid: String) { DurableFile.remove(path(uuid)) }

    private func incomingPath(_ uuid: String) -> String { "\(folder)/\(uuid).incoming" }

    func write(_ record: IncomingRecord, _ uuid: String) throws {
        try prepare()
        try DurableFile.write(json: record, to: incomingPath(uuid))
    }

    func incoming(_ uuid: String) -> IncomingRecord? {
        FileManager.default.contents(atPath: incomingPath(uuid)).flatMap { try? JSONDecoder().decode(IncomingRecord.self, from: $0) }
    }

    /// Whether a guest is to come; cheap.
    func expects(_ uuid: String) -> Bool { access(incomingPath(uuid), F_OK) == 0 }

    func removeIncoming(_ uuid: String) { DurableFile.remove(incomingPath(uuid)) }

    func load() -> [MigrationRecord] { DurableFile.readAll(MigrationRecord.self, in: folder, kind: "migration record") }

    /// Bytes per second that memory went to a peer with, without a limit of ours; nil when none ever did.
    func bandwidth(to peer: String) -> UInt64? { bandwidths[peer] }

    func note(bandwidth: UInt64, to peer: String) {
        var all = bandwidths
        all[peer] = bandwidth
        do {
            try prepare()
            try DurableFile.write(json: all, to: bandwidthPath)
        } catch {
            Log.debug("The bandwidth to \(peer) was not noted: \(error)")
        }
    }

    private var bandwidths: [String: UInt64] {
        FileManager.default.contents(atPath: bandwidthPath).flatMap { try? JSONDecoder().decode([String: UInt64].self, from: $0) } ?? [:]
    }
}
