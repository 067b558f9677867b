import Configuration
import Foundation
import XCTest
@testable import Commands

/// What is made from the commands' own descriptions: manual pages, bash's completion.
final class ManualTests: XCTestCase {
    private let specs = CommandTable(serve: { _, _ in 0 }, worker: { _ in 0 }, doctor: { _, _ in throw Unmet(description: "") }).commands.map(\.spec)

    private func page(_ form: String) throws -> String {
        let ending = try execute([Product.program, "help", "--as", form])
        XCTAssertEqual(ending.status, 0, ending.err)
        return ending.out
    }

    func testCommandsPageSaysEverything() throws {
        let text = try page("man").replacing("\\-", with: "-")
        for spec in specs {
            XCTAssertTrue(text.contains("\n.SS \"\(spec.name)"), spec.name)
            for option in spec.options { XCTAssertTrue(text.contains("\\fB--\(option.long)\\fR"), "\(spec.name) --\(option.long)") }
        }
    }

    func testConfigurationPageSaysEverything() throws {
        let text = try page("man-conf").replacing("\\-", with: "-")
        for key in ServiceConfiguration.keyNames { XCTAssertTrue(text.contains("\n.TP\n\\fB\(key)\\fR = "), key) }
        let keys = ConfigurationManual.keys(try String(contentsOfFile: Product.repository + "/examples/shadow-virt.conf", encoding: .utf8)
            .split(separator: "\n", omittingEmptySubsequences: false).map(String.init))
        XCTAssertEqual(Set(keys.map(\.name)), Set(ServiceConfiguration.keyNames))
        for key in keys {
            XCTAssertFalse(key.comment.isEmpty, "\(key.name) is not explained")
            XCTAssertFalse(key.section.isEmpty, key.name)
        }
    }

    func testMan() throws {
        try skipUnlessInstalled("man", package: "man-db")
        for form in ["man", "man-conf"] {
            let folder = try TemporaryFolder(), file = try folder.write(try page(form), to: "page.1")
            let ending = try execute(["man", "--warnings", "-l", file], environment: ["MANWIDTH": "80", "LC_ALL": "C.UTF-8"])
            XCTAssertEqual(ending.status, 0)
            XCTAssertEqual(ending.err, "")
            XCTAssertTrue(ending.out.contains("shadow-virt"), "it renders")
        }
    }

    func testMandoc() throws {
        try skipUnlessInstalled("mandoc", package: "mandoc")
        for form in ["man", "man-conf"] {
            let folder = try TemporaryFolder(), file = try folder.write(try page(form), to: form == "man" ? "page.1" : "page.5")
            let ending = try execute(["mandoc", "-Tlint", "-W", "warning", file])
            XCTAssertEqual(ending.out + ending.err, "", "mandoc -Tlint of \(form)")
        }
    }

    func testRoffEscapes() {
        XCTAssertEqual(Roff.prose("a-b `--to x` \\n ~^"), "a\\-b \\fB\\-\\-to x\\fR \\en \\(ti\\(ha")
        XCTAssertEqual(Roff.prose(".PP"), "\\&.PP")
        XCTAssertEqual(Roff.prose("'quoted'"), "\\(aqquoted'")
        XCTAssertEqual(Roff.prose("a lone ` stays"), "a lone \\(ga stays")
    }
}

final class CompletionTests: XCTestCase {
    private var folder: TemporaryFolder!

    override func setUpWithError() throws {
        folder = try TemporaryFolder()
        try skipUnlessInstalled("bash", package: "bash")
        _ = try folder.write("peers = [ \"b 192.0.2.2:16520 qemu:///system\",\n  # \"no 192.0.2.9:1 x:///\",\n  \"beta.x 192.0.2.3:16520 qemu+ssh://root@c/system\" ]\n", to: "c.conf")
        _ = try folder.write(try execute([Product.program, "help", "--as", "bash-completion"]).out, to: "completion")
        // What the service of a host with two protected domains prints.
        _ = try folder.write("#!/bin/sh\nprintf '%s\\n' '{' '  \"domains\" : [' '      \"domain\" : \"web1\",' '      \"domain\" : \"web server 2\",' '  ]' '}'\n",
                             to: "bin/shadow-virt", mode: 0o755)
        _ = try folder.write("#!/bin/sh\nprintf '%s\\n' db1 web1 ''\n", to: "bin/virsh", mode: 0o755)
    }

    override func tearDown() { folder = nil }

    /// What bash would offer with the cursor at the end of `words`.
    private func complete(_ words: String...) throws -> [String] {
        let script = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _shadow_virt; (( ${#COMPREPLY[@]} == 0 )) || printf '%s\\n' \"${COMPREPLY[@]}\""
        let ending = try execute(["bash", "--norc", "-c", script, "bash", folder.path + "/completion", "shadow-virt"] + words,
                             environment: ["PATH": "\(folder.path)/bin:/usr/bin:/bin", "LC_ALL": "C"])
        XCTAssertEqual(ending.err, "", "\(words)")
        return ending.out.split(separator: "\n").map(String.init)
    }

    func testCommandsAndOptionsAreThoseOfTheProgram() throws {
        let specs = CommandTable(serve: { _, _ in 0 }, worker: { _ in 0 }, doctor: { _, _ in throw Unmet(description: "") }).commands.map(\.spec)
        XCTAssertEqual(Set(try complete("")), Set(specs.map(\.name) + ["--help", "--version"]))
        XCTAssertEqual(Set(try complete("help", "")), Set(specs.map(\.name)))
        for spec in specs { XCTAssertEqual(Set(try complete(spec.name, "--")), Set(spec.options.map { "--\($0.long)" }), spec.name) }
    }

    func testCommandsByTheirBeginning() throws {
        XCTAssertEqual(try complete("st"), ["status"])
        XCTAssertEqual(try complete("nothing"), [])
    }

    func testDomainsOfTheServiceAndOfLibvirt() throws {
        XCTAssertEqual(try complete("swap", ""), ["db1", "web\\ server\\ 2", "web1"])
        XCTAssertEqual(try complete("status", "w"), ["web\\ server\\ 2", "web1"])
    }

    func testHostsOfTheConfiguration() throws {
        let file = folder.path + "/c.conf"
        XCTAssertEqual(try complete("protect", "web1", "--config", file, "--to", ""), ["b", "beta.x"])
        XCTAssertEqual(try complete("protect", "web1", "--config", "=", file, "--to", "=", "be"), ["beta.x"])
        XCTAssertEqual(try complete("protect", "web1", "--config", "=", file, "--to", "="), ["b", "beta.x"])
    }

    func testValues() throws {
        XCTAssertEqual(try complete("status", "--format", ""), ["json", "table"])
        XCTAssertEqual(try complete("protect", "--on-failure", "r"), ["restart"])
        XCTAssertEqual(try complete("status", "--config", folder.path + "/c."), [folder.path + "/c.conf"])
        XCTAssertEqual(try complete("protect", "--interval", ""), [], "any number")
        XCTAssertEqual(try complete("status", "--check", "db"), ["db1"], "a switch takes no value")
    }

    /// Each operand by its place; what belongs to an option is none.
    func testOperandsByTheirPlace() throws {
        let file = folder.path + "/c.conf"
        XCTAssertEqual(try complete("policy", "w"), ["web\\ server\\ 2", "web1"])
        XCTAssertEqual(try complete("policy", "web1", ""), ["clear", "get", "set"])
        XCTAssertEqual(try complete("policy", "-q", "--config", "=", file, "web1", "s"), ["set"])
        XCTAssertEqual(try complete("policy", "--config", file, "--socket", "x", "web1", "g"), ["get"])
        XCTAssertEqual(try complete("policy", "web1", "set", "--lifetime", ""), ["ghost", "permanent"])
        XCTAssertEqual(try complete("hosts", ""), ["clear", "list"])
        XCTAssertEqual(try complete("hosts", "clear", "--config", file, ""), ["b", "beta.x"])
        XCTAssertEqual(try complete("analyze", ""), ["pairs", "series"])
        XCTAssertEqual(try complete("analyze", "pairs", folder.path + "/c."), [file])
        XCTAssertEqual(try complete("status", "web1", ""), [], "one domain is all that it takes")
        XCTAssertEqual(try complete("help", "status", ""), [])
    }

    func testShellcheck() throws {
        try skipUnlessInstalled("shellcheck", package: "shellcheck")
        let ending = try execute(["shellcheck", "-s", "bash", folder.path + "/completion"])
        XCTAssertEqual(ending.status, 0, ending.out)
        let hook = try execute(["shellcheck", Product.repository + "/hooks/50-shadow-virt"])
        XCTAssertEqual(hook.status, 0, hook.out)
    }
}
