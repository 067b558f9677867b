import Configuration
import ControlProtocol
import Foundation
import Glibc
import Platform

extension CommandSpec.Option {
    static let root = CommandSpec.Option("root", value: "DIR", help: "Work on the system below DIR, which is not this one: a package's folder, an image's.")
    static let prefix = CommandSpec.Option(
        "prefix", value: "DIR", help: "Where program, unit, completion and manual pages go; default: the prefix that this program runs from when that is /usr, else /usr/local.")
    static let only = CommandSpec.Option(
        "only", value: "PARTS", help: "Only these parts, separated by commas: \(InstallationPart.allCases.map(\.rawValue).joined(separator: ", ")).")
    static let program = CommandSpec.Option(
        "program", value: "PATH", help: "The program that hook and unit run, which is there already; default: PREFIX/bin/shadow-virt, a copy of this one.")
    static let dryRun = CommandSpec.Option("dry-run", help: "Change nothing, only print what would be done.")
}

/// What `install` and `uninstall` were asked for.
struct InstallationOptions {
    var root: String
    var parts: Set<InstallationPart>
    var layout: InstallationLayout
    var configuration: ServiceConfiguration
    /// nil: the program is not ours to copy.
    var programPath: String?
    /// This very program.
    let executable = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""

    var isThisSystem: Bool { root.isEmpty }

    init(_ arguments: ParsedArguments, _ context: CommandContext, command: String) throws {
        func folder(_ name: String) throws -> String? {
            guard let path = arguments.value(name) else { return nil }
            guard path.hasPrefix("/") else { throw UsageError(message: "Option '--\(name)' needs an absolute path, not '\(path)'", command: command) }
            return path == "/" ? "" : path.hasSuffix("/") ? String(path.dropLast()) : path
        }
        root = try folder("root") ?? ""
        if !root.isEmpty, access(root, F_OK) != 0 { throw ControlFailure("There is no folder \(root)", advice: "Make it first, or correct --root") }
        parts = try Self.parts(arguments.value("only"), command: command)
        let prefix = try folder("prefix") ?? (executable == "/usr/bin/shadow-virt" ? "/usr" : "/usr/local")
        let program = try folder("program")
        configuration = try ServiceConfiguration.load(path: root + ServiceConfiguration.defaultPath, environment: context.environment)
        programPath = program == nil ? "\(prefix)/bin/shadow-virt" : nil
        layout = InstallationLayout(prefix: prefix, program: program ?? "\(prefix)/bin/shadow-virt",
                                    runtimeDirectory: configuration.runtimeDirectory, specs: context.table.commands.map(\.spec))
    }

    private static func parts(_ list: String?, command: String) throws -> Set<InstallationPart> {
        guard let list else { return Set(InstallationPart.allCases) }
        return Set(try list.split(separator: ",").map { word in
            guard let part = InstallationPart(rawValue: String(word)) else {
                throw UsageError(message: "Unknown part '\(word)': use \(InstallationPart.allCases.map(\.rawValue).joined(separator: ", "))", command: command)
            }
            return part
        })
    }

    /// The files of the chosen parts, the program first.
    func files() throws -> [InstallationFile] {
        var files = layout.files()
        if let programPath, parts.contains(.program) {
            // When it runs from where it belongs there is nothing to copy, and nothing that would be ours to remove.
            if programPath != executable || !isThisSystem {
                let content = [UInt8](try Data(contentsOf: URL(fileURLWithPath: "/proc/self/exe")))
                files.insert(InstallationFile(part: .program, path: programPath, content: content, mode: 0o755), at: 0)
            }
        }
        // Without libvirt's own profiles nobody includes our lines.
        let hasProfiles = access(root + InstallationLayout.appArmorAbstraction, F_OK) == 0
        return files.filter { parts.contains($0.part) && ($0.part != .apparmor || hasProfiles) }
    }
}

/// Runs `body`; what the user's rights do not allow is said with its way out.
func withAdviceOnRights<R>(_ body: () throws -> R) throws -> R {
    do {
        return try body()
    } catch let error as SystemError where [EACCES, EPERM, EROFS].contains(error.code) {
        throw ControlFailure("\(error)", advice: "Run it as root, or work below another folder with --root")
    }
}
