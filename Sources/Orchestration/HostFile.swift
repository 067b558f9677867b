import Foundation
import Platform

/// What this host keeps of itself in a JSON file of its own below `STATE_DIRECTORY/host/`: read once, when somebody asks first, and in memory from then on.
final class HostFile<Content: Codable & Sendable>: Sendable {
    let path: String
    private let folder: String
    private let empty: Content
    private let whenUnreadable: String
    /// Nil: not read yet.
    private let content = Guarded<Content?>(nil)

    /// - Parameters:
    ///   - empty: what there is without a file, and in the place of one that cannot be read.
    ///   - whenUnreadable: what that means, for the log.
    init(_ name: String, stateDirectory: String, empty: Content, whenUnreadable: String) {
        folder = "\(stateDirectory)/host"
        path = "\(folder)/\(name)"
        self.empty = empty
        self.whenUnreadable = whenUnreadable
    }

    private func load() -> Content {
        guard let data = FileManager.default.contents(atPath: path) else { return empty }
        do {
            return try JSONDecoder().decode(Content.self, from: data)
        } catch {
            Log.error("Cannot read \(path): \(error). \(whenUnreadable); remove the file")
            return empty
        }
    }

    func read<R>(_ body: (Content) -> R) -> R {
        content.change { content in
            let current = content ?? load()
            content = current
            return body(current)
        }
    }

    /// Changes what is in memory, at once for whoever asks, and writes it when it is to be kept over restarts. The change stands even when that fails.
    func change(keeping keeps: Bool, _ body: (inout Content) -> Void) throws {
        let error: (any Error)? = content.change { content in
            var current = content ?? load()
            body(&current)
            content = current
            guard keeps else { return nil }
            do {
                try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
                try DurableFile.write(json: current, to: path)
                return nil
            } catch { return error }
        }
        if let error { throw error }
    }
}
