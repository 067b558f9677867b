import Configuration
import ControlProtocol
import Foundation
import Glibc
import Platform

/// Some bytes of a bundle that another host asked for.
struct BundlePart: Codable, Sendable {
    /// Of the whole bundle.
    var total: Int
    var data: Data
}

/// The bundles of a host: its own, and, in a folder for each, those that were fetched from others.
struct BundleShelf {
    static let suffix = ".tar.gz"
    /// Of one part; in JSON it is four bytes for three.
    static let partBytes = 2 << 20
    /// What tar and gzip may make of the largest bundle.
    static let mostBytes = (DiagnosticBundle.mostBundleKiB + 1024) << 10

    let folder: String

    init(stateDirectory: String) { folder = "\(stateDirectory)/diagnose" }

    private func place(of host: String) -> String { "\(folder)/from-\(host)" }

    /// HOST-TIME.tar.gz, as `DiagnosticBundle` names them: nothing that leads out of the folder.
    static func isName(_ name: String) -> Bool {
        guard name.hasSuffix(suffix), let dash = name.lastIndex(of: "-") else { return false }
        let time = name[name.index(after: dash)...].dropLast(suffix.count)
        return HostName.isValid(name[..<dash]) && (8...24).contains(time.count) && time.allSatisfy { "0123456789T".contains($0) }
    }

    func list() -> [BundleInfo] {
        let folders = ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).filter { $0.hasPrefix("from-") }.sorted()
        return list(in: folder, from: nil) + folders.flatMap { list(in: "\(folder)/\($0)", from: String($0.dropFirst("from-".count))) }
    }

    private func list(in folder: String, from host: String?) -> [BundleInfo] {
        ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).filter(Self.isName).sorted().compactMap { name in
            guard let facts = try? FileManager.default.attributesOfItem(atPath: "\(folder)/\(name)"), let bytes = facts[.size] as? Int,
                  let date = facts[.modificationDate] as? Date else { return nil }
            return BundleInfo(name: name, bytes: bytes, time: Timestamp.format(seconds: Int(date.timeIntervalSince1970), milliseconds: 0), from: host)
        }
    }

    /// A part of one that was made here.
    func part(of name: String, from offset: Int) throws -> BundlePart {
        guard Self.isName(name), let file = FileHandle(forReadingAtPath: "\(folder)/\(name)") else {
            throw ControlFailure("There is no bundle \(name) here", advice: "`shadow-virt diagnose HOST --list` lists them; the last \(DiagnosticBundle.mostBundles) are kept")
        }
        defer { try? file.close() }
        let total = Int(clamping: try file.seekToEnd())
        guard (0...total).contains(offset) else { throw ControlFailure("Bundle \(name) has \(total) bytes: nothing begins at \(offset)") }
        try file.seek(toOffset: UInt64(offset))
        return BundlePart(total: total, data: try file.read(upToCount: Self.partBytes) ?? Data())
    }

    /// Keeps what `part` gives for each offset, part after part. Returns the path. Of each host as many are kept as that host keeps itself.
    func fetch(_ name: String, of host: String, part: (_ offset: Int) throws -> BundlePart) throws -> String {
        guard Self.isName(name), HostName.isValid(host) else { throw ControlFailure("'\(name)' is no name of a bundle", advice: "`shadow-virt diagnose \(host) --list` lists them") }
        var bytes: [UInt8] = [], total: Int?
        while true {
            let next = try part(bytes.count)
            guard next.total <= Self.mostBytes, next.total == total ?? next.total, next.data.count <= Self.partBytes, bytes.count + next.data.count <= next.total, !next.data.isEmpty || next.total == bytes.count else {
                throw ControlFailure("What \(host) sends of bundle \(name) makes no sense (\(next.data.count) bytes at \(bytes.count) of \(next.total))", advice: "Copy it by other means")
            }
            total = next.total
            bytes += next.data
            if bytes.count == next.total { break }
        }
        let place = place(of: host)
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
        try DurableFile.write(bytes, to: "\(place)/\(name)")
        let names = ((try? FileManager.default.contentsOfDirectory(atPath: place)) ?? []).filter(Self.isName).sorted()
        for old in names.dropLast(DiagnosticBundle.mostBundles) where old != name { unlink("\(place)/\(old)") }
        return "\(place)/\(name)"
    }
}

extension Registry {
    private var shelf: BundleShelf { BundleShelf(stateDirectory: environment.configuration.stateDirectory) }
    private static let partMs = 30_000.0, listMs = 10_000.0

    func answerBundles(_ call: TrustCall) throws -> PeerResponse {
        var response = PeerResponse()
        if call.action == .bundles {
            response.bundles = ownBundles
        } else {
            response.bundlePart = try shelf.part(of: call.bundle ?? "", from: call.offset ?? 0)
        }
        return response
    }

    private var ownBundles: BundleList { BundleList(host: environment.hostName, folder: shelf.folder, bundles: shelf.list()) }

    /// Bundles that lie on this host, or on `host`.
    public func bundles(of host: String?) throws -> BundleList {
        guard let host, !environment.isThisHost(host) else { return ownBundles }
        let peer = try environment.peer(host)
        guard let list = try ask(peer, TrustCall(.bundles), Self.listMs).bundles else { throw ControlFailure("\(peer.name) does not say which bundles it has") }
        return list
    }

    /// Copies a bundle of `host` to this one. Returns where it is.
    public func fetchBundle(_ name: String, of host: String) throws -> String {
        let peer = try environment.peer(host)
        return try shelf.fetch(name, of: peer.name) { offset in
            var call = TrustCall(.bundle)
            (call.bundle, call.offset) = (name, offset)
            guard let part = try ask(peer, call, Self.partMs).bundlePart else { throw ControlFailure("\(peer.name) does not send its bundles", advice: "Is shadow-virt there of the same release (\(ProductVersion.text))?") }
            return part
        }
    }

    private func ask(_ peer: Peer, _ call: TrustCall, _ timeoutMs: Double) throws -> PeerResponse {
        try environment.client(of: peer).ask(PeerRequest(call, host: environment.hostName), timeoutMs: timeoutMs)
    }
}
