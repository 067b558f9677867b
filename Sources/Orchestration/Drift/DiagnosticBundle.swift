import ControlProtocol
import Foundation
import Glibc
import Platform

/// What there is to know about this host at a moment, in one archive below `STATE_DIRECTORY/diagnose/`: for whoever is to find out what was wrong, when
/// the logs have long been rotated. Readable by root only: logs may tell things.
struct DiagnosticBundle {
    /// Bytes of one file in it; of longer ones the end. Bundles that are kept, and bytes of one.
    static let mostBytes = 1 << 20, mostBundles = 5, mostBundleKiB = 32 << 10
    private static let commandMs = 10_000.0, tarMs = 60_000.0
    /// Lines of the kernel's log.
    private static let kernelLines = "3000"

    let folder: String
    private let name: String
    private var scratch: String { "\(folder)/.\(name)" }

    init(stateDirectory: String, host: String) {
        folder = "\(stateDirectory)/diagnose"
        name = "\(host)-\(Timestamp.now.filter { $0.isNumber || $0 == "T" })"
    }

    /// - Parameters:
    ///   - texts: files by their name.
    ///   - logs: files of which the end goes in, by the name that they get.
    ///   - folders: series of KPIs, whole.
    /// - Returns: the path of the archive.
    func make(texts: [String: String], logs: [String: String], folders: [String: String]) throws -> String {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        var left = Self.mostBundleKiB << 10
        for (file, text) in texts { try put(Array(text.utf8.suffix(Self.mostBytes)), file, &left) }
        for (file, path) in logs { try put(Self.end(of: path), file, &left) }
        try put(Self.kernelLog(), "kernel.log", &left)
        for (target, source) in folders { try copy(source, target, &left) }
        let path = "\(folder)/\(name).tar.gz"
        try pack(path)
        prune()
        return path
    }

    private func put(_ bytes: [UInt8], _ file: String, _ left: inout Int) throws {
        guard !bytes.isEmpty, bytes.count <= left else { return }
        left -= bytes.count
        guard FileManager.default.createFile(atPath: "\(scratch)/\(file)", contents: Data(bytes), attributes: [.posixPermissions: 0o600]) else {
            throw SystemError("create", "\(scratch)/\(file)", code: EIO)
        }
    }

    private func copy(_ source: String, _ target: String, _ left: inout Int) throws {
        let files = (try? FileManager.default.contentsOfDirectory(atPath: source)) ?? []
        guard !files.isEmpty else { return }
        try FileManager.default.createDirectory(atPath: "\(scratch)/\(target)", withIntermediateDirectories: true)
        for file in files.sorted() {
            guard let size = (try? FileManager.default.attributesOfItem(atPath: "\(source)/\(file)"))?[.size] as? Int, size <= left else { continue }
            left -= size
            try? FileManager.default.copyItem(atPath: "\(source)/\(file)", toPath: "\(scratch)/\(target)/\(file)")
        }
    }

    /// The last bytes of a file; none when it cannot be read.
    static func end(of path: String) -> [UInt8] {
        guard let file = FileHandle(forReadingAtPath: path), let size = try? file.seekToEnd() else { return [] }
        defer { try? file.close() }
        try? file.seek(toOffset: size > UInt64(mostBytes) ? size - UInt64(mostBytes) : 0)
        return (try? file.read(upToCount: mostBytes)).flatMap { $0 }.map { Array($0) } ?? []
    }

    /// With times where there is a journal; else the kernel's own buffer.
    private static func kernelLog() -> [UInt8] {
        for (tool, arguments) in [("journalctl", ["-k", "-q", "--no-pager", "-o", "short-iso", "-n", kernelLines]), ("dmesg", ["--time-format", "iso"]), ("dmesg", [])] {
            if let log = try? Subprocess.capture("/usr/bin/env", arguments: [tool] + arguments, limitMs: commandMs, ceilingKiB: mostBytes >> 10), log.status == "exit 0",
               !log.output.isEmpty { return log.output }
        }
        return []
    }

    private func pack(_ path: String) throws {
        let temporary = path + DurableFile.temporarySuffix
        // Not to be read by others while it grows.
        let file = try Descriptor(checking: open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600), "open", temporary)
        _ = fchmod(file.raw, 0o600)
        let tar = try Subprocess.capture("/usr/bin/env", arguments: ["tar", "-czf", temporary, "-C", folder, "--transform", "s,^[.],,", ".\(name)"], limitMs: Self.tarMs,
                                         ceilingKiB: Self.mostBundleKiB + 1024)
        guard tar.status == "exit 0" else {
            unlink(temporary)
            throw ControlFailure("tar could not pack \(scratch) (\(tar.status))", advice: "Is tar with gzip installed, and room in \(folder)?")
        }
        guard rename(temporary, path) == 0 else { throw SystemError("rename", path) }
    }

    /// The newest stay; what a service that was killed left half done goes.
    private func prune() {
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).sorted()
        for old in names.filter({ $0.hasSuffix(".tar.gz") }).dropLast(Self.mostBundles) { unlink("\(folder)/\(old)") }
        for rest in names where rest.hasSuffix(DurableFile.temporarySuffix) || rest.hasPrefix(".") && rest != ".\(name)" {
            try? FileManager.default.removeItem(atPath: "\(folder)/\(rest)")
        }
    }
}

extension Registry {
    /// A bundle of this host, or of a peer, where it stays, and of which a copy comes here. Returns what was done.
    public func diagnose(host: String?) throws -> String {
        guard let host, !environment.isThisHost(host) else {
            return "Made \(try diagnose("asked for by an administrator")) on \(environment.hostName)"
        }
        let peer = try environment.peer(host)
        let request = PeerRequest(TrustCall(.diagnose), host: environment.hostName)
        let path = try environment.client(of: peer).ask(request, timeoutMs: 120_000).state ?? "a bundle"
        let made = "Made \(path) on \(peer.name)"
        do {
            return "\(made); a copy is \(try fetchBundle((path as NSString).lastPathComponent, of: peer.name))"
        } catch {
            return "\(made); it could not be copied to here: \(error)"
        }
    }

    /// Puts aside what there is to know of this host now. Returns the archive's path.
    func diagnose(_ reason: String, about watch: DriftWatch? = nil) throws -> String {
        try diagnosing.withLock {
            let configuration = environment.configuration, state = configuration.stateDirectory
            var texts = ["reason.txt": "\(Timestamp.now) \(environment.hostName): \(reason)\n"]
            texts["status.json"] = Self.json(try? status(of: nil))
            texts["hosts.json"] = Self.json(hosts())
            texts["health.json"] = Self.json(drift?.health())
            texts["drift.json"] = Self.json(driftReports(watch))
            texts["drift.txt"] = driftReports(watch).map { "\($0.domain) to \($0.peer): \($0.decision)\n" + $0.explanation.map { "  \($0)\n" }.joined() }.joined()
            var logs = ["events.jsonl": "\(state)/events.jsonl", "events.1.jsonl": "\(state)/events.jsonl.1"]
            var folders = ["kpi-host": "\(state)/telemetry/host"]
            for status in (try? status(of: nil)) ?? [] {
                folders["kpi-\(status.uuid)"] = "\(state)/telemetry/\(status.uuid)"
                // Where libvirt's QEMU driver has it, unless somebody built it otherwise.
                logs["libvirt-\(status.uuid).log"] = "/var/log/libvirt/qemu/\(status.domain).log"
            }
            texts.merge(insideTexts()) { mine, _ in mine }
            let path = try DiagnosticBundle(stateDirectory: state, host: environment.hostName).make(texts: texts.compactMapValues { $0 }, logs: logs, folders: folders)
            Log.info("What there is to know about this host is in \(path): \(reason)")
            environment.events.record(kind: "diagnosed", domain: watch?.domain, uuid: watch?.saved.uuid, message: "A bundle was made: \(path) (\(reason))", details: ["path": path])
            return path
        }
    }

    /// Of every domain here, and of the one that has just gone.
    private func driftReports(_ gone: DriftWatch?) -> [DomainDrift] {
        guard let keeper = drift else { return [] }
        let here = keeper.watches.read { Array($0.values) }
        let all = here.filter { $0.saved.uuid != gone?.saved.uuid } + (gone.map { [$0] } ?? [])
        return all.map { $0.report(onDrift: keeper.onDrift($0.saved.uuid).rawValue, intervalMs: $0.law?.intervalMs ?? 0, intervalReason: $0.law?.reason ?? "") }
    }

    /// Of the guests that run here, as their agents tell; of the first ones, because agents may be slow.
    private func insideTexts() -> [String: String] {
        let end = MonotonicTime.now.adding(milliseconds: 20_000)
        var texts: [String: String] = [:]
        for status in (try? status(of: nil)) ?? [] where status.role == .primary && status.state != .failedOver && .now < end {
            texts["inside-\(status.uuid).json"] = Self.json(try? inside(of: status.uuid))
        }
        return texts
    }

    private static func json(_ value: (some Encodable)?) -> String? {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return value.flatMap { try? encoder.encode($0) }.map { String(decoding: $0, as: UTF8.self) }
    }
}
