import Foundation
import Glibc

/// Small files that are replaced whole: temporary file, fsync, rename, fsync of the folder. After a crash at any step the old or the
/// new content is there, never a part.
public enum DurableFile {
    /// What a write that was cut off leaves behind; the next one replaces it.
    public static let temporarySuffix = ".new"

    /// `mode`: the file's permissions, whatever the process's umask.
    public static func write(_ bytes: [UInt8], to path: String, mode: mode_t = 0o600) throws {
        let temporary = path + temporarySuffix
        let file = try Descriptor(checking: open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600), "open", temporary)
        guard fchmod(file.raw, mode) == 0 else { throw SystemError("fchmod", temporary) }
        var done = 0
        while done < bytes.count {
            let n = bytes.withUnsafeBytes { buffer in
                retryingInterrupts { Glibc.write(file.raw, buffer.baseAddress.map { $0 + done }, buffer.count - done) }
            }
            guard n > 0 else { throw SystemError("write", temporary) }
            done += n
        }
        guard fsync(file.raw) == 0 else { throw SystemError("fsync", temporary) }
        guard rename(temporary, path) == 0 else { throw SystemError("rename", temporary) }
        try syncFolder((path as NSString).deletingLastPathComponent)
    }

    /// A value as JSON, with its keys in order, so that two states can be compared with `diff`.
    public static func write(json value: some Encodable, to path: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        try write(Array(encoder.encode(value)), to: path)
    }

    /// Every value in the files of a folder whose names end with `suffix`; one that cannot be read is reported as a `kind` and left where it is.
    public static func readAll<T: Decodable>(_ type: T.Type, in folder: String, suffix: String = ".json", kind: String) -> [T] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        return names.filter { $0.hasSuffix(suffix) }.sorted().compactMap { name in
            let file = "\(folder)/\(name)"
            do {
                return try JSONDecoder().decode(type, from: Data(contentsOf: URL(fileURLWithPath: file)))
            } catch {
                Log.error("Cannot read the \(kind) \(file): \(error). Look at it, then remove it")
                return nil
            }
        }
    }

    public static func remove(_ path: String) {
        unlink(path)
        try? syncFolder((path as NSString).deletingLastPathComponent)
    }

    private static func syncFolder(_ path: String) throws {
        let folder = try Descriptor(checking: open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", path)
        guard fsync(folder.raw) == 0 else { throw SystemError("fsync", path) }
    }
}
