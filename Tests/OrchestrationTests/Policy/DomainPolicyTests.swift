@testable import Orchestration
import ControlProtocol
import XCTest

final class DomainPolicyTests: XCTestCase {
    private var full: DomainPolicy {
        var policy = DomainPolicy()
        policy.isEnabled = false
        policy.lifetime = .ghost
        policy.shadows = 3
        policy.engine = .continuous
        policy.intervalMs = 12.5
        policy.hosts = ["hostA", "host-b.example.org"]
        policy.rules = [.init(.differ, .rack, .required), .init(.differ, .power, .preferred), .init(.same, .zone, .required)]
        policy.pool = "fast"
        policy.diskRateBytesPerSecond = 50 << 20
        policy.criticalDisks = ["vda", "sdb"]
        policy.onFailure = .restart
        policy.onDrift = .swap
        policy.thresholds = ["rpo_ms": 500, "cpu.share": 0.25]
        return policy
    }

    func testWhatIsWrittenIsRead() throws {
        for policy in [DomainPolicy(), full] { XCTAssertEqual(try DomainPolicy(xml: policy.xml), policy, policy.xml) }
        var bare = DomainPolicy()
        bare.withoutDisks = true
        bare.diskRateBytesPerSecond = nil
        XCTAssertEqual(try DomainPolicy(xml: bare.xml), bare)
        var odd = DomainPolicy()
        odd.diskRateBytesPerSecond = 123_457
        XCTAssertEqual(try DomainPolicy(xml: odd.xml), odd)
    }

    func testWrittenForPeople() {
        XCTAssertEqual(full.xml, """
            <policy enabled="no" shadows="3" lifetime="ghost">
              <engine name="continuous" interval="12.5ms"/>
              <placement>
                <host name="hostA"/>
                <host name="host-b.example.org"/>
                <differ in="rack" level="required"/>
                <differ in="power" level="preferred"/>
                <same in="zone" level="required"/>
              </placement>
              <disks copy="all" pool="fast" rate="50MiB/s">
                <critical target="vda"/>
                <critical target="sdb"/>
              </disks>
              <failure action="restart"/>
              <drift action="swap">
                <threshold metric="cpu.share" value="0.25"/>
                <threshold metric="rpo_ms" value="500"/>
              </drift>
            </policy>
            """)
    }

    func testAnEmptyElementIsAPolicyOfDefaults() throws {
        XCTAssertEqual(try DomainPolicy(xml: "<policy/>"), DomainPolicy())
        XCTAssertEqual(try DomainPolicy(xml: "<s:policy xmlns:s='https://shadow-virt.org/domain/1'><s:engine name='periodic'/></s:policy>").engine, .periodic)
        XCTAssertEqual(try DomainPolicy(xml: "<policy><!-- a remark --><placement><differ in='rack'/></placement></policy>").rules, [.init(.differ, .rack, .preferred)])
    }

    /// Each mistake, and the words of the error that name it.
    func testMistakesAreNamed() {
        let mistakes: [(xml: String, words: [String])] = [
            ("", ["no well-formed XML"]), ("<policy>", ["no well-formed XML"]), ("hello", ["no well-formed XML"]),
            ("<!DOCTYPE x [<!ENTITY a 'b'>]><policy/>", ["no well-formed XML"]),
            ("<politics/>", ["<politics>"]), ("<policy xmlns='https://shadow-virt.org/domain/2'/>", ["https://shadow-virt.org/domain/2"]),
            ("<policy enable='yes'/>", ["'enable'", "enabled"]), ("<policy enabled='maybe'/>", ["'maybe'", "no or yes"]),
            ("<policy lifetime='short'/>", ["'short'", "ghost"]), ("<policy shadows='0'/>", ["'0'", "1 to 8"]), ("<policy shadows='9'/>", ["'9'"]), ("<policy shadows='x'/>", ["'x'"]),
            ("<policy><motor/></policy>", ["<motor>", "<engine>"]), ("<policy>text</policy>", ["text in <policy>", "'text'"]),
            ("<policy><engine/><engine/></policy>", ["<engine> occurs twice"]), ("<policy><engine name='warp'/></policy>", ["'warp'", "periodic"]),
            ("<policy><engine interval='fast'/></policy>", ["'interval'", "'fast'"]), ("<policy><engine interval='1ms'/></policy>", ["'1ms'"]),
            ("<policy><engine name='periodic' interval='20ms'/></policy>", ["periodic", "1000"]), ("<policy><engine speed='1'/></policy>", ["'speed'"]),
            ("<policy><engine><x/></engine></policy>", ["<x> in <engine>"]),
            ("<policy><placement><host/></placement></policy>", ["<host>", "'name'"]), ("<policy><placement><host name='a b'/></placement></policy>", ["'a b'"]),
            ("<policy><placement><host name='a'/><host name='A'/></placement></policy>", ["twice"]),
            ("<policy><placement><differ/></placement></policy>", ["<differ>", "'in'"]), ("<policy><placement><differ in='row'/></placement></policy>", ["'row'", "rack"]),
            ("<policy><placement><differ in='rack' level='must'/></placement></policy>", ["'must'", "required"]),
            ("<policy><placement><differ in='rack'/><same in='rack'/></placement></policy>", ["two rules", "rack"]),
            ("<policy><placement strict='yes'/></policy>", ["'strict'"]),
            ("<policy><disks copy='some'/></policy>", ["'some'", "all or none"]), ("<policy><disks rate='1B/s'/></policy>", ["'rate'"]),
            ("<policy><disks copy='none'><critical target='vda'/></disks></policy>", ["vda"]), ("<policy><disks copy='none' pool='p'/></policy>", ["pool"]),
            ("<policy><disks><critical/></disks></policy>", ["<critical>", "'target'"]), ("<policy><failure action='panic'/></policy>", ["'panic'", "restart"]),
            ("<policy><drift action='x'/></policy>", ["'x'"]), ("<policy><drift><threshold metric='a'/></drift></policy>", ["'value'"]),
            ("<policy><drift><threshold metric='a' value='much'/></drift></policy>", ["'much'"]), ("<policy><drift><threshold metric='a' value='-1'/></drift></policy>", ["'-1'"]),
            ("<policy><drift><threshold metric='a' value='1'/><threshold metric='a' value='2'/></drift></policy>", ["two thresholds", "'a'"]),
            ("<policy><placement>" + (0...64).map { "<host name='h\($0)'/>" }.joined() + "</placement></policy>", ["65", "64"]),
            ("<policy>" + String(repeating: " ", count: DomainPolicy.ceilingBytes) + "</policy>", ["bytes"]),
        ]
        for (xml, words) in mistakes {
            XCTAssertThrowsError(try DomainPolicy(xml: xml), xml) { error in
                let text = String(describing: error)
                for word in words { XCTAssertTrue(text.contains(word), "'\(text)' does not name \(word): \(xml.prefix(200))") }
                let first: Character = text.first ?? " "
                XCTAssertTrue(first.isUppercase || "<'".contains(first), text)
            }
        }
    }

    func testRequestThereAndBack() {
        var policy = full
        policy.criticalDisks = []
        var copy = policy
        copy.take(ProtectRequest(policy))
        policy.isEnabled = true
        XCTAssertEqual(copy, policy, "How to protect goes there and back; placement and drift are left alone")
    }
}
