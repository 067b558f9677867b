import ControlProtocol
import Foundation
import Glibc
import Libvirt
import Platform

/// The size of a file, nil when it cannot be told.
enum FileSize {
    static func of(_ path: String) -> UInt64? {
        var info = stat()
        return stat(path, &info) == 0 && info.st_mode & S_IFMT == S_IFREG ? UInt64(info.st_size) : nil
    }
}

/// UEFI's variables, as they go over with a request.
public struct NVRAMFile: Codable, Sendable, Equatable {
    public var path: String
    public var content: Data
}

extension DomainDefinition {
    struct Firmware: Equatable {
        var loader: String
        /// A plain file with the guest's variables.
        var nvram: String?
        /// Variables that are kept in another way, described for a person.
        var otherNVRAM: String?
    }

    /// Of a guest with flash; nil for BIOS.
    var firmware: Firmware? {
        guard text("os/loader/@type") == "pflash", let loader = text("os/loader") else { return nil }
        guard let element = elements("os/nvram").first else { return Firmware(loader: loader, nvram: nil, otherNVRAM: nil) }
        let type = element.attribute(forName: "type")?.stringValue ?? "file"
        let format = element.attribute(forName: "format")?.stringValue ?? "raw"
        let path = element.elements(forName: "source").first?.attribute(forName: "file")?.stringValue
            ?? element.stringValue?.trimmingCharacters(in: .whitespacesAndNewlines) ?? ""
        guard type == "file", format == "raw", path.hasPrefix("/") else {
            return Firmware(loader: loader, nvram: nil, otherNVRAM: type == "file" ? "in format \(format)" : "on \(type) storage")
        }
        return Firmware(loader: loader, nvram: path, otherNVRAM: nil)
    }
}

/// The variables' file of a guest. While QEMU runs, its flash device has the content in a RAM block, which is part of every epoch, and
/// writes all of it to the file when a guest is resumed after loading (`pflash_cfi01.c`, `pflash_post_load`). So the file at the shadow only
/// has to be there, in the right size; its content counts when the guest is booted there without its memory.
enum NVRAM {
    /// No firmware known has more; 64 KiB to 4 MiB are usual.
    static let mostBytes: UInt64 = 4 << 20

    /// Nil when there is nothing to carry: no file of its own, or one on storage that the other host has as well.
    static func read(_ definition: DomainDefinition) throws -> NVRAMFile? {
        guard let path = definition.firmware?.nvram, SharedStorage.name(of: path) == nil else { return nil }
        guard let size = FileSize.of(path), size <= mostBytes, let content = FileManager.default.contents(atPath: path) else {
            throw ControlFailure("The firmware's variables of \(definition.name) cannot be read from \(path)", advice: "shadow-virt has to run as root; more than \(mostBytes >> 20) MiB are not carried")
        }
        return NVRAMFile(path: path, content: content)
    }

    /// Puts the file where the shadow expects it. What was there and differs is kept beside it. Returns whether there was none.
    static func provide(_ file: NVRAMFile, uuid: String, _ connection: Connection) throws -> Bool {
        guard file.path.hasPrefix("/"), !file.path.split(separator: "/").contains(".."), UInt64(file.content.count) <= mostBytes else {
            throw ControlFailure("\(file.path) is no file for a firmware's variables")
        }
        if let user = try user(of: file.path, except: uuid, connection) {
            throw ControlFailure("\(file.path) holds the firmware's variables of domain \(user)", advice: "Give one of them another <nvram> file")
        }
        let old = FileManager.default.contents(atPath: file.path)
        if old == file.content { return false }
        if old != nil, rename(file.path, file.path + ".replaced") != 0 { throw SystemError("rename", file.path) }
        try FileManager.default.createDirectory(atPath: (file.path as NSString).deletingLastPathComponent, withIntermediateDirectories: true)
        try DurableFile.write(Array(file.content), to: file.path)
        return old == nil
    }

    private static func user(of path: String, except uuid: String, _ connection: Connection) throws -> String? {
        try connection.domains().first { domain in
            guard domain.uuid != uuid, let xml = try? domain.xml(), let definition = try? DomainDefinition(xml: xml) else { return false }
            return definition.firmware?.nvram.map(VolumeUsers.canonical) == VolumeUsers.canonical(path)
        }?.name
    }
}
