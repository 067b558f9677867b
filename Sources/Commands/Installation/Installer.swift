import ControlProtocol
import Foundation
import Glibc
import Platform

/// Puts files onto a system, or below a folder that is to become one, and takes them away again. Everything is looked at first: what would
/// be refused is found before the first change.
struct Installer {
    /// Empty for this system, else a folder without a slash at its end.
    var root: String
    var isDryRun = false
    var overwrites = false
    private var manifest: InstallationManifest
    /// What was done, a line each; a `dry run` says what would be done.
    private(set) var report: [String] = []

    init(root: String, isDryRun: Bool = false, overwrites: Bool = false) throws {
        self.root = root
        self.isDryRun = isDryRun
        self.overwrites = overwrites
        let path = root + InstallationManifest.path
        manifest = try Self.content(of: path).map { try InstallationManifest(text: String(decoding: $0, as: UTF8.self), file: path) } ?? InstallationManifest()
    }

    // MARK: Install

    mutating func install(_ files: [InstallationFile]) throws {
        try refuseForeign(files.filter { $0.kind == .whole })
        for file in files {
            do {
                try place(file)
            } catch {
                // What was written until now is known all the same.
                try? saveManifest()
                throw error
            }
        }
        try saveManifest()
    }

    private mutating func place(_ file: InstallationFile) throws {
        let old = try Self.content(of: root + file.path)
        var content = file.content
        switch file.kind {
        case .onceOnly where old != nil: return say("Kept", file.path)
        case .block:
            content = Array(MarkedBlock.replacing(in: String(decoding: old ?? [], as: UTF8.self), with: String(decoding: file.content, as: UTF8.self)).utf8)
        default: break
        }
        if file.kind == .whole { manifest.files[file.path] = InstallationManifest.hash(content) }
        if old == content, file.kind != .whole || Self.mode(of: root + file.path) == file.mode { return say("Unchanged", file.path) }
        if !isDryRun {
            try makeFolder((file.path as NSString).deletingLastPathComponent)
            // A file of others keeps its permissions.
            let mode = file.kind == .block ? Self.mode(of: root + file.path) ?? file.mode : file.mode
            try DurableFile.write(content, to: root + file.path, mode: mode)
        }
        say(old == nil ? "Installed" : "Updated", file.path)
    }

    private func refuseForeign(_ files: [InstallationFile]) throws {
        guard !overwrites else { return }
        let foreign = files.filter { !isOurs($0.path, content: $0.content) }.map { root + $0.path }
        guard foreign.isEmpty else {
            throw ControlFailure("Not written by this command, or changed since: \(foreign.joined(separator: ", "))",
                                 advice: "Move \(foreign.count == 1 ? "it" : "them") away, or use --force to overwrite. Nothing was changed")
        }
    }

    /// Absent, the same already, or as the manifest has it. Somebody's symbolic link is never ours.
    private func isOurs(_ path: String, content: [UInt8]?) -> Bool {
        var status = stat()
        guard lstat(root + path, &status) == 0 else { return errno == ENOENT || errno == ENOTDIR }
        guard status.st_mode & S_IFMT == S_IFREG, let old = try? Self.content(of: root + path) else { return false }
        return old == content || manifest.files[path] == InstallationManifest.hash(old)
    }

    private mutating func makeFolder(_ path: String) throws {
        var missing: [String] = []
        var folder = path
        while !folder.isEmpty, folder != "/", access(root + folder, F_OK) != 0 {
            missing.append(folder)
            folder = (folder as NSString).deletingLastPathComponent
        }
        for folder in missing.reversed() {
            guard mkdir(root + folder, 0o755) == 0, chmod(root + folder, 0o755) == 0 else { throw SystemError("mkdir", root + folder) }
            if !manifest.folders.contains(folder) { manifest.folders.append(folder) }
        }
    }

    private mutating func saveManifest() throws {
        guard !isDryRun else { return }
        let path = root + InstallationManifest.path
        guard manifest != InstallationManifest() else { return }
        try makeFolder((InstallationManifest.path as NSString).deletingLastPathComponent)
        if try Self.content(of: path) != Array(manifest.text.utf8) { try DurableFile.write(Array(manifest.text.utf8), to: path, mode: 0o644) }
    }

    // MARK: Uninstall

    /// Removes what `install` put there: `files` that nobody changed, and of other parts' earlier files those in the manifest.
    mutating func uninstall(_ files: [InstallationFile], withManifest all: Bool) throws {
        var whole = files.filter { $0.kind == .whole }.map(\.path)
        if all { whole += manifest.files.keys.filter { !whole.contains($0) }.sorted() }
        let present = whole.filter { access(root + $0, F_OK) == 0 }
        let changed = overwrites ? [] : present.filter { path in !isOurs(path, content: files.first { $0.path == path }?.content) }
        guard changed.isEmpty else {
            throw ControlFailure("Not written by `install`, or changed since: \(changed.map { root + $0 }.joined(separator: ", "))",
                                 advice: "Move \(changed.count == 1 ? "it" : "them") away, or use --force to remove. Nothing was changed")
        }
        for path in present { try remove(path) }
        for file in files where file.kind == .block { try removeBlock(file.path) }
        for path in whole { manifest.files[path] = nil }
        if all, !isDryRun { unlink(root + InstallationManifest.path) }
        removeFolders()
        if !all { try saveManifest() }
    }

    private mutating func remove(_ path: String) throws {
        if !isDryRun, unlink(root + path) != 0 { throw SystemError("unlink", root + path) }
        say("Removed", path)
    }

    private mutating func removeBlock(_ path: String) throws {
        guard let old = try Self.content(of: root + path) else { return }
        let new = Array(MarkedBlock.replacing(in: String(decoding: old, as: UTF8.self), with: nil).utf8)
        guard new != old else { return }
        if !isDryRun { try DurableFile.write(new, to: root + path, mode: Self.mode(of: root + path) ?? 0o644) }
        say("Removed our lines from", path)
    }

    /// Those that we made, as far as nothing is in them.
    private mutating func removeFolders() {
        guard !isDryRun else { return }
        for folder in manifest.folders.reversed() where rmdir(root + folder) == 0 { manifest.folders.removeAll { $0 == folder } }
    }

    /// Removes files and folders with all that is in them, and `folders` when nothing is left in them. A path whose name does not say that it is ours
    /// stays: a configuration may name any folder.
    mutating func purge(_ paths: [String], folders: [String]) throws {
        for path in paths where access(root + path, F_OK) == 0 {
            guard path.split(separator: "/").suffix(2).contains(where: { $0.contains("shadow-virt") }) else {
                say("Kept, because it may hold other things,", path)
                continue
            }
            if !isDryRun { try FileManager.default.removeItem(atPath: root + path) }
            say("Removed", path)
        }
        for folder in folders where !isDryRun { rmdir(root + folder) }
        removeFolders()
    }

    // MARK: Looking

    private mutating func say(_ what: String, _ path: String) { report.append((isDryRun ? "Would be: " : "") + "\(what) \(root)\(path)") }

    private static func content(of path: String) throws -> [UInt8]? {
        guard access(path, F_OK) == 0 else { return nil }
        return Array(try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    private static func mode(of path: String) -> UInt32? {
        var status = stat()
        return stat(path, &status) == 0 ? status.st_mode & 0o7777 : nil
    }
}
