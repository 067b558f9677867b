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
        "program", value: "PATH", help: "The program that the unit runs, which is there already, as is the hook's, PATH-hook; default: copies of this one and its own.")
    static let dryRun = CommandSpec.Option("dry-run", help: "Change nothing, only print what would be done.")
}

/// What `install` and `uninstall` were asked for.
struct InstallationOptions {
    var root: String
    var parts: Set<InstallationPart>
    var layout: InstallationLayout
    var configuration: ServiceConfiguration
    /// False: the programs are not ours to copy.
    private var copiesPrograms: Bool
    /// This very program.
    private let executable = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""

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
        copiesPrograms = program == nil
        layout = InstallationLayout(prefix: prefix, program: program ?? "\(prefix)/bin/shadow-virt",
                                    hookProgram: program.map { "\($0)-hook" } ?? "\(prefix)/libexec/shadow-virt-hook",
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

    /// The files of the chosen parts, the programs first.
    func files() throws -> [InstallationFile] {
        var files = layout.files()
        if copiesPrograms, parts.contains(.program) {
            files = try copies(of: "/proc/self/exe", called: executable, to: layout.program)
                + copies(of: hookExecutable, called: hookExecutable, to: layout.hookProgram) + files
        }
        return files.filter { parts.contains($0.part) && ($0.includedBy.map { access(root + $0, F_OK) == 0 } ?? true) }
    }

    /// When a program runs from where it belongs there is nothing to copy, and nothing that would be ours to remove.
    private func copies(of source: String?, called name: String?, to path: String) throws -> [InstallationFile] {
        guard let source, path != name || !isThisSystem else { return [] }
        return [InstallationFile(part: .program, path: path, content: [UInt8](try Data(contentsOf: URL(fileURLWithPath: source))), mode: 0o755)]
    }

    /// The hook's program that came with this one: beside it after a build, in `libexec` once installed. Nil: it is not there.
    private var hookExecutable: String? {
        let folder = (executable as NSString).deletingLastPathComponent
        return ["\(executable)-hook", "\((folder as NSString).deletingLastPathComponent)/libexec/shadow-virt-hook"].first { access($0, X_OK) == 0 }
    }

    /// Throws when the hook's program is to be installed and there is none.
    func requireHookProgram() throws {
        guard copiesPrograms, parts.contains(.program), hookExecutable == nil else { return }
        throw ControlFailure("There is no \(executable)-hook, the program that libvirt's hook runs",
                             advice: "Build it as well: `swift build -c release --static-swift-stdlib --product shadow-virt-hook`. Nothing was changed")
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
