import Foundation
import Glibc
import Platform

/// What was learned of each pair, a file each below the state folder.
struct DriftStore {
    /// Some hundred KPIs take less than a MiB.
    private static let mostBytes = 8 << 20

    let folder: String

    init(stateDirectory: String) { folder = "\(stateDirectory)/drift" }

    private func path(_ uuid: String, _ peer: String) -> String { "\(folder)/\(uuid)@\(peer).json" }

    /// Nil: nothing was kept, or nothing that this release, at this step, can go on with.
    func load(uuid: String, peer: String, stepSeconds: Int) -> DriftWatch.Saved? {
        let path = path(uuid, peer)
        guard let size = (try? FileManager.default.attributesOfItem(atPath: path))?[.size] as? Int, size <= Self.mostBytes,
              let data = FileManager.default.contents(atPath: path) else { return nil }
        guard let saved = try? JSONDecoder().decode(DriftWatch.Saved.self, from: data) else {
            Log.info("\(path) is not of this release: the baseline is learned anew")
            return nil
        }
        guard saved.version == DriftWatch.Saved.version, saved.uuid == uuid, saved.peer == peer, saved.stepSeconds == stepSeconds else { return nil }
        return saved
    }

    func save(_ saved: DriftWatch.Saved) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try DurableFile.write(json: saved, to: path(saved.uuid, saved.peer))
    }

    func remove(uuid: String, peer: String) {
        let path = path(uuid, peer)
        guard FileManager.default.fileExists(atPath: path) else { return }
        DurableFile.remove(path)
        // Refused while it holds others.
        rmdir(folder)
    }
}
