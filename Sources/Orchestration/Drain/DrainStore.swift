import Foundation
import Platform

/// Whether this host is being emptied, and who left it for that: below `STATE_DIRECTORY/host/`. Survives a reboot, which is what one drains for.
struct DrainStore: Sendable {
    struct Record: Codable, Sendable, Equatable {
        enum Way: String, Codable, Sendable {
            case swapped, migrated
        }
        struct Moved: Codable, Sendable, Equatable {
            var uuid: String
            var domain: String
            var host: String
            var way: Way
        }
        var schema = 1
        /// Placements are refused.
        var isDraining: Bool
        /// ISO 8601 UTC.
        var since: String
        /// Guests that went, in the order in which they did, and have not come back.
        var moved: [Moved]
    }

    private let folder: String
    private var path: String { "\(folder)/drain.json" }

    init(stateDirectory: String) { folder = "\(stateDirectory)/host" }

    /// Nil: nothing was drained. One that cannot be read counts as draining: rather no shadow than one on a host that is about to go.
    func read() -> Record? {
        guard let data = FileManager.default.contents(atPath: path) else { return nil }
        do {
            return try JSONDecoder().decode(Record.self, from: data)
        } catch {
            Log.error("Cannot read \(path): \(error). This host takes no shadows until it is removed")
            return Record(isDraining: true, since: Timestamp.now, moved: [])
        }
    }

    func write(_ record: Record) throws {
        guard record.isDraining || !record.moved.isEmpty else { return DurableFile.remove(path) }
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try DurableFile.write(json: record, to: path)
    }

    var isDraining: Bool { read()?.isDraining ?? false }
}

extension Registry {
    /// This host is being emptied, or was and takes no shadows still.
    public var isDraining: Bool { drains.isDraining }

    /// One drain or undrain at a time. False: one is under way.
    public func beginDrain() -> Bool {
        isDrainUnderWay.change { isUnderWay in
            defer { isUnderWay = true }
            return !isUnderWay
        }
    }

    public func endDrain() { isDrainUnderWay.change { $0 = false } }
}
